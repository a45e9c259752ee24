/**
 * What the laws send to a target: its own requests, varied, and bytes of the other protocol.
 *
 * @internal
 */
import { Buffer } from "node:buffer"
import * as FastCheck from "effect/FastCheck"
import * as Arbitrary from "../../testing/Arbitrary.js"
import type { Request, Requests, Target } from "../../testing/Laws.js"
import { quote } from "./property.js"

/** Bytes, and where they are split. */
export interface Split {
  readonly bytes: Uint8Array
  readonly at: ReadonlyArray<number>
}

type Fields = FastCheck.Arbitrary<ReadonlyArray<Arbitrary.Field>>

const requestOf = (request: string | Request): Request => (typeof request === "string" ? { path: request } : request)

const listOf = (requests: Requests): ReadonlyArray<Request> =>
  typeof requests === "string" || "path" in requests ? [requestOf(requests)] : requests.map(requestOf)

const withoutBody: Arbitrary.Body = { headers: [], bytes: new Uint8Array(0), content: new Uint8Array(0), trailers: [] }

const methodsWithBody = new Set(["POST", "PUT", "PATCH"])

/** One of these requests, with these fields among others, and with a body where it may have one. */
export const oneOf = (requests: Requests, fields: Fields): FastCheck.Arbitrary<Arbitrary.Request> =>
  FastCheck.oneof(
    { withCrossShrink: true },
    ...listOf(requests).map(({ body, headers = [], method = "GET", path }) =>
      Arbitrary.request({
        methods: [method],
        target: FastCheck.constant(path),
        headers: fields.map((fields) => [...headers, ...fields]),
        body:
          (body ?? methodsWithBody.has(method))
            ? FastCheck.oneof({ withCrossShrink: true }, FastCheck.constant(withoutBody), Arbitrary.body())
            : FastCheck.constant(withoutBody)
      })
    )
  )

// In use with protocols of their own: a server may take them before the target's
const inUse = new Set(["websocket", "echo"])

/** The fields of a request that offers the protocol, sometimes among others. */
export const offering = (protocol: string): Fields => {
  const [name = protocol, version] = protocol.split("/")
  const others = FastCheck.array(
    Arbitrary.offer.filter((other) => !inUse.has(other.name.toLowerCase()) && other.name !== name),
    { maxLength: 3 }
  )
  return Arbitrary.upgradeFields(
    Arbitrary.upgrade(
      FastCheck.tuple(others, FastCheck.nat({ max: 3 })).map(([others, at]) => [
        ...others.slice(0, at),
        { name, version, token: protocol },
        ...others.slice(at)
      ])
    )
  )
}

/** The fields of a request that offers something, of which nothing may come. */
export const offeringAny = (protocol: string): Fields =>
  FastCheck.oneof({ withCrossShrink: true }, offering(protocol), Arbitrary.upgradeFields())

export const offeringNothing: Fields = FastCheck.constant([])

/** Bytes that repeat late, so that each place in them is recognised. */
export const pattern = (length: number, from = 0): Uint8Array => {
  const bytes = Buffer.alloc(length)
  for (let i = 0; i < length; i++) {
    bytes[i] = ((from + i) % 251) ^ ((from + i) >> 11)
  }
  return bytes
}

/** More bytes than what lies between two ends holds, sometimes. */
export const many: FastCheck.Arbitrary<Uint8Array> = FastCheck.nat({ max: 300_000 }).map((length) => pattern(length))

/** Bytes of the other protocol: few and of any value, many, or those of a request, which must not be read as one. */
export const payload = (target: Target): FastCheck.Arbitrary<Uint8Array> =>
  FastCheck.oneof(
    { withCrossShrink: true },
    { weight: 6, arbitrary: Arbitrary.payload(64) },
    { weight: 2, arbitrary: oneOf(target.ordinary, offeringNothing).map(({ bytes }) => bytes) },
    { weight: 1, arbitrary: many }
  )

/** A place in something whose length is not known yet: it stays about there while that gets shorter. */
export const place: FastCheck.Arbitrary<(length: number) => number> = FastCheck.nat({ max: 2 ** 20 - 1 }).map(
  (n) => (length) => Math.floor((n * length) / 2 ** 20)
)

const everyByte = FastCheck.constant(
  (length: number): ReadonlyArray<number> =>
    // More pieces take long, and show nothing that is not seen in fewer
    length > 2048 ? [] : Array.from({ length: Math.max(0, length - 1) }, (_, i) => i + 1)
)

/**
 * Splits bytes, anywhere. It is chosen by itself, and not for certain bytes: so each of the two can be made smaller
 * without the other, where a counterexample is.
 */
export const splits: FastCheck.Arbitrary<(...pieces: ReadonlyArray<Uint8Array>) => Split> = FastCheck.oneof(
  { withCrossShrink: true },
  {
    weight: 4,
    arbitrary: FastCheck.array(place, { maxLength: 8 }).map(
      (places) => (length: number) => places.map((at) => at(length))
    )
  },
  { weight: 1, arbitrary: everyByte }
).map((pointsOf) => (...pieces) => {
  const bytes = Buffer.concat(pieces)
  const at = [...new Set(pointsOf(bytes.length))].filter((at) => at > 0).sort((a, b) => a - b)
  return { bytes, at }
})

/** All of it at once. */
export const whole = (...pieces: ReadonlyArray<Uint8Array>): Split => ({ bytes: Buffer.concat(pieces), at: [] })

/** The same request, without its Upgrade field. */
export const withoutUpgrade = ({ bytes, method }: Arbitrary.Request) => {
  const text = Buffer.from(bytes).toString("latin1")
  const end = text.indexOf("\r\n\r\n")
  const lines = text.slice(0, end).split("\r\n")
  const head = lines.filter((line) => !/^upgrade:/i.test(line)).join("\r\n")
  return { method, bytes: Buffer.from(head + text.slice(end), "latin1") }
}

export const show = ({ at, bytes }: Split): string => {
  if (bytes.length === 0) {
    return "sends nothing"
  }
  const where =
    at.length === 0 ? "" : at.length > 8 ? ", every byte by itself" : `, split before the bytes ${at.join(", ")}`
  return `sends ${quote(bytes)}${where}`
}
