import { createRequire } from "node:module"
import * as FastCheck from "effect/FastCheck"
import { assert, describe, it } from "vitest"
import {
  agreed,
  type DeflateOptions,
  type DeflateParams,
  type Extension,
  mismatch,
  negotiate,
  offerDeflate,
  parseExtensions
} from "../../src/internal/websocket/negotiate.js"
import { runs } from "../support.js"

type Configuration = Record<string, ReadonlyArray<string | true>>

interface WsDeflate {
  readonly offer: () => Record<string, string | number | true>
  readonly accept: (configurations: ReadonlyArray<Configuration>) => Record<string, number | true>
}

const require = createRequire(import.meta.url)
const WsDeflate: new (options: object) => WsDeflate = require("../../node_modules/ws/lib/permessage-deflate.js")
const wsExtension: {
  readonly parse: (field: string) => Record<string, ReadonlyArray<Configuration>>
  readonly format: (extensions: object) => string
} = require("../../node_modules/ws/lib/extension.js")

const numRuns = runs(500)
const law = <Ts extends [unknown, ...Array<unknown>]>(
  ...args: [...{ [K in keyof Ts]: FastCheck.Arbitrary<Ts[K]> }, (...values: Ts) => void]
): void => FastCheck.assert(FastCheck.property<Ts>(...args), { numRuns })

const attempt = <A>(body: () => A): A | undefined => {
  try {
    return body()
  } catch {
    return undefined
  }
}

// --- what peers send ---

const token = FastCheck.string({ unit: FastCheck.constantFrom(..."ab1!-_~|"), minLength: 1, maxLength: 4 })
const whitespace = FastCheck.constantFrom("", "", " ", "\t ")
const quoted = token.chain((value) =>
  FastCheck.array(FastCheck.boolean(), { minLength: value.length, maxLength: value.length }).map(
    (escaped) => `"${[...value].map((char, i) => (escaped[i] ? `\\${char}` : char)).join("")}"`
  )
)
const parameter = FastCheck.tuple(token, FastCheck.option(FastCheck.oneof(token, quoted))).map(([name, value]) =>
  value === null ? name : `${name}=${value}`
)
const separated = (element: FastCheck.Arbitrary<string>, separator: string, minLength: number) =>
  FastCheck.array(FastCheck.tuple(element, whitespace, whitespace), { minLength, maxLength: 4 }).map((elements) =>
    elements.map(([one, before, behind], i) => (i === 0 ? one : `${before}${separator}${behind}${one}`)).join("")
  )
const wellFormed = separated(
  FastCheck.tuple(token, separated(parameter, ";", 0)).map(([name, params]) =>
    params === "" ? name : `${name};${params}`
  ),
  ",",
  1
)
const nearly = FastCheck.string({
  unit: FastCheck.oneof(
    FastCheck.constantFrom(...'ab;,="\\ \t'),
    FastCheck.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code))
  ),
  maxLength: 20
})

const bits = FastCheck.integer({ min: 8, max: 15 })
const bitsValue = FastCheck.oneof(
  { weight: 6, arbitrary: bits.map((n) => `=${n}`) },
  { weight: 2, arbitrary: FastCheck.constant("") },
  { weight: 1, arbitrary: FastCheck.constantFrom("=7", "=16", "=08", "=+9", "=0x0a", "=9.0", '="10"', "=a") }
)
const deflateParameter = FastCheck.oneof(
  { weight: 4, arbitrary: FastCheck.constantFrom("server_no_context_takeover", "client_no_context_takeover") },
  { weight: 3, arbitrary: bitsValue.map((value) => `server_max_window_bits${value}`) },
  { weight: 3, arbitrary: bitsValue.map((value) => `client_max_window_bits${value}`) },
  { weight: 1, arbitrary: FastCheck.constantFrom("unknown", "server_no_context_takeover=1", "__proto__") }
)
const deflateField = FastCheck.tuple(
  FastCheck.oneof(
    { weight: 9, arbitrary: FastCheck.constant("permessage-deflate") },
    { weight: 1, arbitrary: FastCheck.constantFrom("x-other", "Permessage-Deflate", "__proto__") }
  ),
  FastCheck.array(deflateParameter, { maxLength: 4 })
).map(([name, params]) => [name, ...params].join("; "))
const deflateFields = FastCheck.array(deflateField, { minLength: 1, maxLength: 3 }).map((fields) => fields.join(", "))

const options: FastCheck.Arbitrary<DeflateOptions> = FastCheck.record(
  {
    serverNoContextTakeover: FastCheck.boolean(),
    clientNoContextTakeover: FastCheck.boolean(),
    serverMaxWindowBits: bits,
    clientMaxWindowBits: bits
  },
  { requiredKeys: [] }
)

/** A field as `ws` gives it: the values of each parameter, by the name of the extension. */
const asWs = (extensions: ReadonlyArray<Extension>) => {
  const names: Record<string, Array<Record<string, string | true>>> = Object.create(null)
  for (const { name, params } of extensions) {
    const first: Record<string, string | true> = Object.create(null)
    for (const [param, value] of params) {
      first[param] = value
    }
    ;(names[name] ??= []).push(first)
  }
  return names
}

const firstValues = (parsed: Record<string, ReadonlyArray<Configuration>>) => {
  const names: Record<string, Array<Record<string, string | true>>> = Object.create(null)
  for (const name of Object.keys(parsed)) {
    names[name] = parsed[name]!.map((configuration) => {
      const first: Record<string, string | true> = Object.create(null)
      for (const param of Object.keys(configuration)) {
        first[param] = configuration[param]![0]!
      }
      return first
    })
  }
  return names
}

const wsParams = (field: string): Configuration => wsExtension.parse(field)["permessage-deflate"]![0]!

describe("the Sec-WebSocket-Extensions field (RFC 6455 §9.1)", () => {
  it("is read as ws reads it, or refused as ws refuses it", () => {
    let refused = 0
    let read = 0
    law(FastCheck.oneof(wellFormed, nearly), (field) => {
      const ours = parseExtensions(field)
      const theirs = attempt(() => wsExtension.parse(field))
      if (theirs === undefined) {
        refused++
        assert.isUndefined(ours, field)
      } else {
        read++
        assert.isDefined(ours, field)
        assert.deepStrictEqual(asWs(ours!), firstValues(theirs), field)
        const repeats = Object.values(theirs)
          .flat()
          .filter((params) => Object.values(params).some((v) => v.length > 1))
        assert.strictEqual(ours!.filter((extension) => extension.repeated).length, repeats.length, field)
      }
    })
    assert.isAbove(read, numRuns / 10)
    assert.isAbove(refused, numRuns / 10)
  })

  it("is read in the order of the extensions", () => {
    law(FastCheck.array(token, { minLength: 1, maxLength: 8 }), (names) => {
      assert.deepStrictEqual(
        parseExtensions(names.join(","))!.map((extension) => extension.name),
        names
      )
    })
  })

  it.each([
    "",
    ",",
    "a,",
    ",a",
    "a,,b",
    "a;",
    "a;;b",
    "a; b=",
    'a; b=""',
    'a; b="c',
    'a; b="c d"',
    'a; b="c\\',
    'a; b="c"d',
    "a; b =c",
    "a; b= c",
    " a",
    "a ",
    "a b",
    "a; =b",
    "a/b",
    "\xe4",
    "a\n"
  ])("%j is malformed", (field) => {
    assert.isUndefined(parseExtensions(field))
  })

  it("of 64 KiB is read as it is, whatever it repeats", () => {
    for (const part of ["a;", "a,", " ", "a; b", 'a;b="', "a;b=\\", "\t ", "a ,", "=", '"', "\\"]) {
      const field = `a${part.repeat(Math.ceil((1 << 16) / part.length))}`
      const ours = parseExtensions(field)
      assert.strictEqual(ours === undefined, attempt(() => wsExtension.parse(field)) === undefined, part)
    }
  })
})

describe("a server's answer to an offer (RFC 7692 §7.1)", () => {
  it("agrees on nothing that was not offered, and on all that was demanded", () => {
    let answered = 0
    law(deflateFields, options, (field, given) => {
      const offers = parseExtensions(field)!
      const result = negotiate(offers, given)
      if (result === undefined) {
        return
      }
      answered++
      const { params, response } = result
      assert.deepStrictEqual(agreed(response), params)
      assert.isUndefined(mismatch(response, field), `${field} → ${response}`)
      for (const [name, value] of parseExtensions(response)![0]!.params) {
        assert.strictEqual(typeof value === "string", name.endsWith("_bits"), name)
      }
      // The server's own limits hold as well
      assert.isAtMost(params.serverMaxWindowBits, given.serverMaxWindowBits ?? 15)
      assert.isAtMost(params.clientMaxWindowBits, given.clientMaxWindowBits ?? 15)
      assert.isTrue(params.serverNoContextTakeover || given.serverNoContextTakeover !== true)
      assert.isTrue(params.clientNoContextTakeover || given.clientNoContextTakeover !== true)
    })
    assert.isAbove(answered, numRuns / 4)
  })

  it("is to the first offer that a server may accept, and there is none where ws has none", () => {
    law(deflateFields, (field) => {
      const offers = parseExtensions(field)!
      const acceptable = offers.findIndex((offer) => negotiate([offer], {}) !== undefined)
      assert.deepStrictEqual(
        negotiate(offers, {}),
        acceptable === -1 ? undefined : negotiate([offers[acceptable]!], {})
      )
      for (const offer of offers) {
        // ws takes any number, however it is written
        const strict = ![...offer.params.values()].some((value) => typeof value === "string" && !/^1?\d$/.test(value))
        const theirs = attempt(() => {
          const configuration: Configuration = {}
          for (const [name, value] of offer.params) {
            configuration[name] = offer.repeated ? [value, value] : [value]
          }
          return new WsDeflate({ isServer: true }).accept([configuration])
        })
        const ours = negotiate([offer], {})
        if (offer.name === "permessage-deflate" && strict && !offer.params.has("__proto__")) {
          assert.strictEqual(ours === undefined, theirs === undefined, field)
        }
      }
    })
  })

  it("is understood by a client of ws, which offered it", () => {
    const wsOptions = FastCheck.record(
      {
        serverNoContextTakeover: FastCheck.boolean(),
        clientNoContextTakeover: FastCheck.constant(true),
        serverMaxWindowBits: bits,
        clientMaxWindowBits: FastCheck.oneof(bits, FastCheck.boolean())
      },
      { requiredKeys: [] }
    )
    law(wsOptions, options, (theirs, ours) => {
      const client = new WsDeflate({ ...theirs, isServer: false })
      const field = wsExtension.format({ "permessage-deflate": client.offer() })
      const result = negotiate(parseExtensions(field)!, ours)
      if (result === undefined) {
        assert.isTrue(theirs.clientMaxWindowBits === false && (ours.clientMaxWindowBits ?? 15) < 15)
      } else {
        client.accept([wsParams(result.response)])
      }
    })
  })

  const answers: ReadonlyArray<readonly [offer: string, options: DeflateOptions, response: string | undefined]> = [
    ["permessage-deflate", {}, "permessage-deflate"],
    // What browsers send
    ["permessage-deflate; client_max_window_bits", {}, "permessage-deflate"],
    [
      "permessage-deflate; client_max_window_bits",
      { clientMaxWindowBits: 10 },
      "permessage-deflate; client_max_window_bits=10"
    ],
    ["permessage-deflate; client_max_window_bits=9", {}, "permessage-deflate; client_max_window_bits=9"],
    [
      "permessage-deflate; client_max_window_bits=9",
      { clientMaxWindowBits: 12 },
      "permessage-deflate; client_max_window_bits=9"
    ],
    ["permessage-deflate", { clientMaxWindowBits: 12 }, undefined],
    ["permessage-deflate", { clientMaxWindowBits: 15 }, "permessage-deflate"],
    ["permessage-deflate; server_max_window_bits=15", {}, "permessage-deflate; server_max_window_bits=15"],
    [
      'permessage-deflate; server_max_window_bits="10"',
      { serverMaxWindowBits: 12 },
      "permessage-deflate; server_max_window_bits=10"
    ],
    [
      "permessage-deflate; server_max_window_bits=8",
      { serverMaxWindowBits: 9 },
      "permessage-deflate; server_max_window_bits=8"
    ],
    ["permessage-deflate", { serverMaxWindowBits: 11 }, "permessage-deflate; server_max_window_bits=11"],
    [
      "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
      {},
      "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    ],
    [
      "permessage-deflate",
      { serverNoContextTakeover: true, clientNoContextTakeover: true },
      "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    ],
    ["permessage-deflate; server_max_window_bits", {}, undefined],
    ["permessage-deflate; server_max_window_bits=16", {}, undefined],
    ["permessage-deflate; server_max_window_bits=08", {}, undefined],
    ["permessage-deflate; client_max_window_bits=7", {}, undefined],
    ["permessage-deflate; client_no_context_takeover=1", {}, undefined],
    ["permessage-deflate; client_no_context_takeover; client_no_context_takeover", {}, undefined],
    ["permessage-deflate; x", {}, undefined],
    ["x-webkit-deflate-frame", {}, undefined],
    [
      "permessage-deflate; x, permessage-bzip2, permessage-deflate; server_no_context_takeover, permessage-deflate",
      {},
      "permessage-deflate; server_no_context_takeover"
    ]
  ]

  it.each(answers)("%j with %o is %j", (field, given, response) => {
    assert.strictEqual(negotiate(parseExtensions(field)!, given)?.response, response)
  })
})

describe("a client", () => {
  it("accepts what a server here or of ws answers to its offer", () => {
    law(options, options, (client, server) => {
      const field = offerDeflate(client)
      const ours = negotiate(parseExtensions(field)!, server)
      assert.isDefined(ours, field)
      assert.isUndefined(mismatch(ours!.response, field))

      const theirs = attempt(() => new WsDeflate({ ...server, isServer: true }).accept([wsParams(field)]))
      if (theirs !== undefined) {
        const response = wsExtension.format({ "permessage-deflate": theirs })
        assert.isUndefined(mismatch(response, field), `${field} → ${response}`)
        assert.isObject(agreed(response))
      }
    })
  })

  it("takes no response but to its own offer, with valid parameters (RFC 7692 §7.1)", () => {
    law(deflateFields, options, (response, client) => {
      const field = offerDeflate(client)
      const params = agreed(response)
      const fault = mismatch(response, field)
      if (typeof params === "string") {
        assert.strictEqual(fault, params)
      } else if (fault === undefined) {
        const { clientMaxWindowBits, serverMaxWindowBits, serverNoContextTakeover } = params as DeflateParams
        assert.isAtMost(serverMaxWindowBits, client.serverMaxWindowBits ?? 15)
        assert.isTrue(serverNoContextTakeover || client.serverNoContextTakeover !== true)
        assert.isTrue(
          clientMaxWindowBits <= (client.clientMaxWindowBits ?? 15) || !response.includes("client_max_window_bits")
        )
      }
    })
  })

  const faults: ReadonlyArray<readonly [response: string, offer: string | undefined, fault: RegExp]> = [
    ["permessage-deflate", undefined, /not offered/],
    ["permessage-deflate", "x-other", /not offered/],
    ["", "permessage-deflate", /malformed/],
    ["x-other", "permessage-deflate", /x-other/],
    ["permessage-deflate, permessage-deflate", "permessage-deflate", /behind/],
    ["permessage-deflate; client_max_window_bits=10", "permessage-deflate", /not offered/],
    [
      "permessage-deflate; client_max_window_bits=11",
      "permessage-deflate; client_max_window_bits=10",
      /10 were offered/
    ],
    ["permessage-deflate; client_max_window_bits", "permessage-deflate; client_max_window_bits", /without a value/],
    [
      "permessage-deflate; server_max_window_bits=11",
      "permessage-deflate; server_max_window_bits=10",
      /10 were offered/
    ],
    ["permessage-deflate", "permessage-deflate; server_max_window_bits=10", /10 were offered/],
    ["permessage-deflate", "permessage-deflate; server_no_context_takeover", /lacks server_no_context_takeover/],
    ["permessage-deflate; server_no_context_takeover=1", "permessage-deflate", /takes none/],
    ["permessage-deflate; x=1", "permessage-deflate", /unknown parameter x/],
    ["permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", "permessage-deflate", /twice/]
  ]

  it.each(faults)("refuses %j to %j", (response, offer, fault) => {
    assert.match(mismatch(response, offer)!, fault)
  })

  it("takes parameters that a server may add (RFC 7692 §7.1.1.2, §7.1.2.1), and an answer to any of its offers", () => {
    assert.isUndefined(mismatch("permessage-deflate; client_no_context_takeover", "permessage-deflate"))
    assert.isUndefined(mismatch("permessage-deflate; server_no_context_takeover", "permessage-deflate"))
    assert.isUndefined(mismatch("permessage-deflate; server_max_window_bits=9", "permessage-deflate"))
    assert.isUndefined(
      mismatch("permessage-deflate", "permessage-deflate; server_max_window_bits=9, permessage-deflate")
    )
  })

  it("agrees on no extension where the response names none", () => {
    assert.isUndefined(agreed(undefined))
    assert.isUndefined(mismatch(undefined, "permessage-deflate"))
  })
})
