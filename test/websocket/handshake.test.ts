import { createHash } from "node:crypto"
import { once } from "node:events"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import * as Headers from "@effect/platform/Headers"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as FastCheck from "effect/FastCheck"
import * as Ws from "ws"
import {
  accept,
  check,
  type HandshakeOptions,
  offer,
  validate,
  verify
} from "../../src/internal/websocket/handshake.js"
import * as Protocol from "../../src/Protocol.js"
import * as Upgrade from "../../src/Upgrade.js"
import { clientTls, message, runs, serve } from "../support.js"

const law = <Ts extends [unknown, ...Array<unknown>]>(
  ...args: [...{ [K in keyof Ts]: FastCheck.Arbitrary<Ts[K]> }, (...values: Ts) => void]
): void => FastCheck.assert(FastCheck.property<Ts>(...args), { numRuns: runs(300) })

// The example of RFC 6455 §1.3
const exampleKey = "dGhlIHNhbXBsZSBub25jZQ=="
const exampleAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

const required = { host: "example.com", "sec-websocket-key": exampleKey, "sec-websocket-version": "13" }

const requestOf = (headers: Record<string, string | undefined>, encrypted = false) =>
  ({
    headers: Headers.unsafeFromRecord(
      Object.fromEntries(Object.entries({ ...required, ...headers }).filter(([, value]) => value !== undefined)) as any
    ),
    source: { socket: { encrypted } }
  }) as unknown as HttpServerRequest

const answer = (headers: Record<string, string | undefined>, options: HandshakeOptions = {}, encrypted = false) =>
  Effect.runSync(Effect.either(check(requestOf(headers, encrypted), options)))

const status = (...args: Parameters<typeof answer>): number =>
  Either.match(answer(...args), { onLeft: (refused) => refused.status, onRight: () => 101 })

const answered = (...args: Parameters<typeof answer>): Headers.Headers => Either.getOrThrow(answer(...args))

const tchars = "!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
const token = FastCheck.string({ unit: FastCheck.constantFrom(...tchars), minLength: 1, maxLength: 6 })
const tokens = FastCheck.uniqueArray(token, { minLength: 1, maxLength: 5 })

describe("Sec-WebSocket-Key and Sec-WebSocket-Accept (RFC 6455 §4.2.1, §4.2.2)", () => {
  it("the answer to the key of RFC 6455 §1.3 is the one given there", () => {
    assert.strictEqual(accept(exampleKey), exampleAccept)
    assert.strictEqual(answered({})["sec-websocket-accept"], exampleAccept)
  })

  it("any 16 bytes in base64 are a key, and are answered with the digest", () => {
    law(FastCheck.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
      const key = Buffer.from(bytes).toString("base64")
      const digest = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64")
      assert.strictEqual(answered({ "sec-websocket-key": key })["sec-websocket-accept"], digest)
    })
  })

  it("no other number of bytes is, and no other way to write them", () => {
    law(FastCheck.uint8Array({ maxLength: 40 }), (bytes) => {
      const key = Buffer.from(bytes).toString("base64")
      assert.strictEqual(status({ "sec-websocket-key": key }), bytes.length === 16 ? 101 : 400)
    })
    law(FastCheck.string({ unit: FastCheck.constantFrom(..."AQgwBZ+/=-_ \n"), maxLength: 26 }), (key) => {
      const canonical = Buffer.from(key, "base64")
      const isKey = canonical.length === 16 && canonical.toString("base64") === key
      assert.strictEqual(status({ "sec-websocket-key": key }), isKey ? 101 : 400)
    })
  })

  it.each([
    undefined,
    "",
    exampleKey.slice(0, -2),
    exampleKey.slice(0, -1),
    `${exampleKey}=`,
    ` ${exampleKey}`,
    `${exampleKey}\n`,
    `${exampleKey}, ${exampleKey}`,
    // Padding with bits that must be zero (RFC 4648 §3.5)
    "dGhlIHNhbXBsZSBub25jZR==",
    "dGhlIHNhbXBsZSBub25jZ-==",
    "the sample nonce"
  ])("the key %j is refused with 400", (key) => {
    assert.strictEqual(status({ "sec-websocket-key": key }), 400)
  })
})

describe("Sec-WebSocket-Version (RFC 6455 §4.4)", () => {
  it.each([undefined, "", "8", "0", "14", "013", "13.0", "13, 13", "13, 8"])(
    "%j is refused with 426, which names 13",
    (version) => {
      const refused = answer({ "sec-websocket-version": version, "sec-websocket-key": undefined })
      assert.isTrue(Either.isLeft(refused))
      if (Either.isLeft(refused)) {
        assert.strictEqual(refused.left.status, 426)
        assert.deepStrictEqual(refused.left.headers, { "sec-websocket-version": "13" })
      }
    }
  )
})

describe("Sec-WebSocket-Protocol (RFC 6455 §4.1, §4.2.2)", () => {
  it("names the first of the server's subprotocols that was offered, or the request is refused", () => {
    law(tokens, tokens, (subprotocols, offered) => {
      const expected = subprotocols.find((subprotocol) => offered.includes(subprotocol))
      const result = answer({ "sec-websocket-protocol": offered.join(", ") }, { subprotocols })
      if (expected === undefined) {
        assert.strictEqual(Either.isLeft(result) && result.left.status, 400)
      } else {
        assert.strictEqual(Either.getOrThrow(result)["sec-websocket-protocol"], expected)
      }
      // Without a list nothing is chosen: the client's first is not echoed
      assert.notProperty(answered({ "sec-websocket-protocol": offered.join() }), "sec-websocket-protocol")
    })
  })

  it("is absent where nothing was offered, unless there must be one", () => {
    const subprotocols = ["chat"]
    assert.notProperty(answered({}, { subprotocols }), "sec-websocket-protocol")
    assert.strictEqual(status({}, { subprotocols, requireSubprotocol: true }), 400)
    assert.strictEqual(status({ "sec-websocket-protocol": "chat" }, { subprotocols, requireSubprotocol: true }), 101)
  })

  it("is matched in its case", () => {
    assert.strictEqual(status({ "sec-websocket-protocol": "Chat" }, { subprotocols: ["chat"] }), 400)
  })

  it.each([
    "",
    ",",
    "chat,",
    ",chat",
    "a,,chat",
    "chat, chat",
    "ch at",
    "chat/2",
    '"chat"',
    "chat;",
    "\xe4",
    "chat\x00"
  ])("%j is refused with 400, whether the server has subprotocols or not", (field) => {
    assert.strictEqual(status({ "sec-websocket-protocol": field }, { subprotocols: ["chat"] }), 400)
    assert.strictEqual(status({ "sec-websocket-protocol": field }), 400)
  })

  it("may have whitespace round its elements", () => {
    const field = " a\t,  chat ,b"
    assert.strictEqual(
      answered({ "sec-websocket-protocol": field }, { subprotocols: ["chat"] })["sec-websocket-protocol"],
      "chat"
    )
  })
})

describe("Sec-WebSocket-Extensions (RFC 6455 §9.1)", () => {
  const field = "permessage-deflate; client_max_window_bits"

  it("is answered where compression is on, and only there", () => {
    const headers = { "sec-websocket-extensions": field }
    assert.notProperty(answered(headers), "sec-websocket-extensions")
    assert.notProperty(answered(headers, { compression: false }), "sec-websocket-extensions")
    assert.strictEqual(answered(headers, { compression: true })["sec-websocket-extensions"], "permessage-deflate")
    assert.strictEqual(
      answered(headers, { compression: { clientMaxWindowBits: 10 } })["sec-websocket-extensions"],
      "permessage-deflate; client_max_window_bits=10"
    )
    assert.notProperty(answered({}, { compression: true }), "sec-websocket-extensions")
    assert.notProperty(
      answered({ "sec-websocket-extensions": "x-other" }, { compression: true }),
      "sec-websocket-extensions"
    )
  })

  it.each(["", ",", "a,", "a; b=", 'a; b="c'])("%j is refused with 400", (malformed) => {
    assert.strictEqual(status({ "sec-websocket-extensions": malformed }), 400)
    assert.strictEqual(status({ "sec-websocket-extensions": malformed }, { compression: true }), 400)
  })
})

describe("Origin (RFC 6455 §10.2)", () => {
  const originStatus = (
    origin: string | undefined,
    host: string | undefined,
    allowed?: HandshakeOptions["origin"],
    encrypted = false
  ) => status({ origin, host }, allowed === undefined ? {} : { origin: allowed }, encrypted)

  it("is no browser's where it is absent: such a request passes whatever is allowed", () => {
    assert.strictEqual(originStatus(undefined, "example.com"), 101)
    assert.strictEqual(originStatus(undefined, "example.com", []), 101)
    assert.strictEqual(
      originStatus(undefined, "example.com", () => false),
      101
    )
    assert.strictEqual(originStatus(undefined, undefined), 101)
  })

  const label = FastCheck.string({ unit: FastCheck.constantFrom(..."abxyz"), minLength: 1, maxLength: 5 })
  const name = FastCheck.array(label, { minLength: 1, maxLength: 3 }).map((labels) => labels.join("."))
  const host = FastCheck.oneof(name, FastCheck.constantFrom("[::1]", "[2001:db8::1]", "127.0.0.1"))
  const port = FastCheck.constantFrom("", ":80", ":443", ":3000")

  it("is the same host's exactly where a URL parser says so of it and of the Host field", () => {
    const scheme = FastCheck.constantFrom("http", "https")
    const cased = FastCheck.func(FastCheck.boolean()).map(
      (upper) => (s: string) => [...s].map((char, i) => (upper(i) ? char.toUpperCase() : char)).join("")
    )
    let same = 0
    law(
      scheme,
      FastCheck.tuple(host, host, FastCheck.boolean()).map(([a, b, equal]) => [a, equal ? a : b] as const),
      port,
      port,
      FastCheck.boolean(),
      cased,
      (scheme, [theirs, ours], theirPort, ourPort, encrypted, recase) => {
        // The scheme's default port is the Host field's too, unless TLS says which it is
        const expected =
          new URL(`${scheme}://${theirs}${theirPort}`).origin === new URL(`${scheme}://${ours}${ourPort}`).origin &&
          (!encrypted || scheme === "https")
        same += expected ? 1 : 0
        assert.strictEqual(
          originStatus(recase(`${scheme}://${theirs}${theirPort}`), recase(`${ours}${ourPort}`), undefined, encrypted),
          expected ? 101 : 403
        )
      }
    )
    assert.isAbove(same, 20)
  })

  const cases: ReadonlyArray<readonly [origin: string, host: string | undefined, encrypted: boolean, status: number]> =
    [
      ["https://example.com", "example.com", true, 101],
      // Behind a proxy that ends TLS
      ["https://example.com", "example.com", false, 101],
      ["https://example.com", "example.com:443", false, 101],
      ["https://example.com:8443", "example.com:8443", true, 101],
      ["http://example.com", "example.com:", false, 101],
      ["http://localhost:3000", "localhost:3000", false, 101],
      ["http://[::1]:3000", "[::1]:3000", false, 101],
      // A page that somebody on the way wrote, with the cookies of the encrypted one
      ["http://example.com", "example.com", true, 403],
      ["http://example.com:8443", "example.com:8443", true, 403],
      ["http://localhost:3001", "localhost:3000", false, 403],
      ["https://example.com", "example.com:80", false, 403],
      ["https://sub.example.com", "example.com", false, 403],
      ["https://example.com.evil.example", "example.com", false, 403],
      ["https://evil-example.com", "example.com", false, 403],
      ["https://example.com", undefined, false, 403],
      ["https://example.com", "", false, 403],
      ["null", "example.com", false, 403],
      ["null", "null", false, 403],
      ["file://", "", false, 403],
      ["chrome-extension://abc", "abc", false, 403],
      // Several, or none
      ["https://example.com, https://example.com", "example.com", false, 403],
      ["https://example.com https://example.com", "example.com", false, 403],
      ["", "example.com", false, 403],
      ["example.com", "example.com", false, 403],
      ["https://example.com/", "example.com", false, 403],
      ["https://user@example.com", "example.com", false, 403],
      ["https://example.com\\", "example.com", false, 403],
      ["https://example.com:", "example.com", false, 403],
      [`https://${"a".repeat(600)}`, "a".repeat(600), false, 403]
    ]

  it.each(cases)("%j at the host %j (encrypted: %j) is answered with %i", (origin, given, encrypted, expected) => {
    assert.strictEqual(originStatus(origin, given, undefined, encrypted), expected)
    assert.strictEqual(originStatus(origin, given, "same-host", encrypted), expected)
    assert.strictEqual(originStatus(origin, given, "any", encrypted), 101)
  })

  it("is refused by a message with it and the host", () => {
    const refused = answer({ origin: "https://evil.example", host: "example.com" })
    assert.isTrue(Either.isLeft(refused))
    if (Either.isLeft(refused)) {
      assert.include(refused.left.description, "https://evil.example")
      assert.include(refused.left.description, "example.com.")
    }
  })

  const lists: ReadonlyArray<
    readonly [allowed: string | RegExp, passes: ReadonlyArray<string>, not: ReadonlyArray<string>]
  > = [
    [
      "https://app.example",
      ["https://app.example", "https://APP.example", "https://app.example:443"],
      ["http://app.example", "https://app.example:8443", "https://x.app.example", "https://app.example.evil", "null"]
    ],
    [
      "https://*.example.com",
      ["https://a.example.com", "https://A.Example.com:443", "https://a-b.example.com"],
      [
        "https://example.com",
        "https://.example.com",
        "https://a.b.example.com",
        "http://a.example.com",
        "https://a.example.com:8443",
        "https://evil.com:1.example.com",
        "https://aexample.com",
        "https://a.example.com.evil"
      ]
    ],
    ["http://*.localhost:3000", ["http://a.localhost:3000"], ["http://a.localhost", "http://a.localhost:30000"]],
    ["https://pr-1.*.example.com", ["https://pr-1.x.example.com"], ["https://pr-1.example.com"]],
    [
      /https:\/\/\w+\.example\.com/gi,
      ["https://a.example.com", "https://A.EXAMPLE.com"],
      ["https://a.example.com.evil", "xhttps://a.example.com", "https://b.c.example.com"]
    ],
    [/https:\/\/a|https:\/\/ab/y, ["https://a", "https://ab"], ["https://abc"]],
    [/^https:\/\/a\.example$/, ["https://a.example"], ["https://b.example"]],
    ["null", ["null"], ["https://null"]],
    ["file://", ["file://"], ["https://file"]]
  ]

  it.each(lists)("%s allows %j, and not %j", (allowed, passes, not) => {
    // Twice: a RegExp may remember where it was
    for (const origin of [...passes, ...passes]) {
      assert.strictEqual(originStatus(origin, "example.com", ["https://first.example", allowed]), 101, origin)
    }
    for (const origin of not) {
      assert.strictEqual(originStatus(origin, "example.com", [allowed, "https://last.example"]), 403, origin)
    }
    validate({ origin: [allowed] })
  })

  it("is given to a function with the host, once it is known to be one origin or null", () => {
    const seen: Array<unknown> = []
    const allowed = (...args: ReadonlyArray<unknown>) => {
      seen.push(args)
      return args[0] === "null"
    }
    assert.strictEqual(originStatus("null", "example.com", allowed), 101)
    assert.strictEqual(originStatus("https://a.example", "example.com", allowed), 403)
    assert.strictEqual(originStatus("https://a, https://b", "example.com", allowed), 403)
    assert.deepStrictEqual(seen, [
      ["null", "example.com"],
      ["https://a.example", "example.com"]
    ])
  })
})

describe("options", () => {
  const invalid: ReadonlyArray<HandshakeOptions> = [
    { subprotocols: ["chat 2"] },
    { subprotocols: [""] },
    { subprotocols: ["a", "a"] },
    { requireSubprotocol: true },
    { requireSubprotocol: true, subprotocols: [] },
    { origin: ["example.com"] },
    { origin: ["https://example.com/"] },
    { origin: ["https://*"] },
    { origin: ["https://*.*.example.com"] },
    { origin: ["https://a*.example.com"] },
    { origin: ["https://example.*"] },
    { origin: ["https://example.com:*"] },
    { origin: ["*://example.com"] },
    { origin: ["*"] },
    { compression: { serverMaxWindowBits: 7 } },
    { compression: { clientMaxWindowBits: 16 } },
    { compression: { clientMaxWindowBits: 9.5 } },
    { compression: { level: 10 } },
    { compression: { memLevel: 0 } },
    { compression: { threshold: -1 } },
    { compression: { concurrency: 0 } }
  ]

  it.each(invalid)("%j are the program's fault, and said to be so", (options) => {
    assert.throws(() => validate(options), TypeError, /^WebSocket: /)
  })

  it("that make sense are none", () => {
    validate({})
    validate({ origin: "any", compression: true, subprotocols: ["a", "b"], requireSubprotocol: true })
    validate({ origin: () => true, compression: { level: -1, memLevel: 9, threshold: 0, concurrency: 1 } })
    validate({ compression: { serverMaxWindowBits: 8, clientMaxWindowBits: 15 } })
  })
})

describe("a client", () => {
  const options = FastCheck.record(
    {
      subprotocols: tokens,
      compression: FastCheck.oneof(
        FastCheck.boolean(),
        FastCheck.record(
          {
            serverNoContextTakeover: FastCheck.boolean(),
            serverMaxWindowBits: FastCheck.integer({ min: 8, max: 15 }),
            clientMaxWindowBits: FastCheck.integer({ min: 8, max: 15 })
          },
          { requiredKeys: [] }
        )
      )
    },
    { requiredKeys: [] }
  )
  const verified = (headers: Record<string, string>, sent: Headers.Headers, given: HandshakeOptions = {}) =>
    verify({ headers: Headers.fromInput(headers) }, sent, given)

  it("sends a key that it never sent before", () => {
    const keys = new Set(Array.from({ length: 1000 }, () => offer({})["sec-websocket-key"]))
    assert.strictEqual(keys.size, 1000)
    for (const key of keys) {
      assert.strictEqual(status({ "sec-websocket-key": key }), 101)
    }
  })

  it("accepts what a server here answers to its offer", () => {
    law(options, options, (client, server) => {
      const sent = offer(client)
      const result = answer({ ...sent }, server)
      if (Either.isLeft(result)) {
        assert.isTrue((server.subprotocols?.length ?? 0) > 0 && (client.subprotocols?.length ?? 0) > 0)
      } else {
        assert.isUndefined(verified({ ...result.right }, sent, client))
      }
    })
  })

  const sent = Headers.fromInput({
    "sec-websocket-key": exampleKey,
    "sec-websocket-protocol": "chat, superchat",
    "sec-websocket-extensions": "permessage-deflate; client_max_window_bits"
  })
  const good = { "sec-websocket-accept": exampleAccept }
  const bad: ReadonlyArray<readonly [Record<string, string>, RegExp]> = [
    [{}, /missing/],
    [{ "sec-websocket-accept": accept("other") }, /Sec-WebSocket-Accept/],
    [{ "sec-websocket-accept": exampleAccept.toLowerCase() }, /Sec-WebSocket-Accept/],
    [{ "sec-websocket-accept": `${exampleAccept}, ${exampleAccept}` }, /Sec-WebSocket-Accept/],
    [{ ...good, "sec-websocket-protocol": "other" }, /subprotocol other/],
    [{ ...good, "sec-websocket-protocol": "Chat" }, /subprotocol Chat/],
    [{ ...good, "sec-websocket-protocol": "chat, superchat" }, /subprotocol chat, superchat/],
    [{ ...good, "sec-websocket-protocol": "" }, /subprotocol/],
    [{ ...good, "sec-websocket-extensions": "x-other" }, /x-other/],
    [{ ...good, "sec-websocket-extensions": "permessage-deflate; client_max_window_bits" }, /without a value/]
  ]

  it.each(bad)("refuses a 101 with %j", (headers, fault) => {
    assert.match(verified(headers, sent)!.description, fault)
  })

  it("refuses a subprotocol or an extension where it offered none", () => {
    const bare = Headers.fromInput({ "sec-websocket-key": exampleKey })
    assert.isUndefined(verified(good, bare))
    assert.isDefined(verified({ ...good, "sec-websocket-protocol": "chat" }, bare))
    assert.isDefined(verified({ ...good, "sec-websocket-extensions": "permessage-deflate" }, bare))
    assert.isDefined(verified({ "sec-websocket-accept": accept("") }, Headers.empty))
  })

  it("goes without a subprotocol, unless there must be one", () => {
    assert.isUndefined(verified(good, sent))
    assert.match(verified(good, sent, { requireSubprotocol: true })!.description, /none of the subprotocols/)
    assert.isUndefined(verified({ ...good, "sec-websocket-protocol": "superchat" }, sent, { requireSubprotocol: true }))
  })
})

describe("on the wire", () => {
  const app = (options: HandshakeOptions) =>
    Upgrade.onUpgrade(
      Protocol.make({ token: "websocket", methods: ["GET"], check: (request) => check(request, options) }),
      () => Effect.void
    )
  const asking = (fields: ReadonlyArray<string>) =>
    message("GET / HTTP/1.1", ["Host: example.com", "Connection: Upgrade", "Upgrade: websocket", ...fields])
  const key = `Sec-WebSocket-Key: ${exampleKey}`
  const version = "Sec-WebSocket-Version: 13"

  const repeated: ReadonlyArray<readonly [field: string, fields: ReadonlyArray<string>, status: number]> = [
    ["nothing", [], 101],
    ["the key", [key], 400],
    ["the version", [version], 426],
    ["an origin", ["Origin: http://example.com", "Origin: http://example.com"], 403],
    ["an empty list of subprotocols", ["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol:"], 400],
    ["a subprotocol", ["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"], 400],
    ["an empty list of extensions", ["Sec-WebSocket-Extensions: x", "Sec-WebSocket-Extensions:"], 400],
    // These two may stand in several fields: RFC 6455 §11.3.2, §11.3.4
    ["the field of subprotocols", ["Sec-WebSocket-Protocol: x", "Sec-WebSocket-Protocol: chat"], 101],
    ["the field of extensions", ["Sec-WebSocket-Extensions: x", "Sec-WebSocket-Extensions: permessage-deflate"], 101]
  ]

  it.scoped.each(repeated)("a request that repeats %s is answered %2$i", ([, fields, expected]) =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app({ subprotocols: ["chat"], compression: true }))
      const peer = yield* connect
      yield* peer.send(asking([key, version, ...fields]))
      const head = yield* peer.receiveHead
      assert.strictEqual(head.status, expected)
      if (expected === 101) {
        assert.strictEqual(head.headers["sec-websocket-accept"], exampleAccept)
        const text = fields.join()
        assert.strictEqual(head.headers["sec-websocket-protocol"], text.includes("chat") ? "chat" : undefined)
        assert.strictEqual(
          head.headers["sec-websocket-extensions"],
          text.includes("deflate") ? "permessage-deflate" : undefined
        )
      } else {
        assert.notProperty(head.headers, "sec-websocket-accept")
        assert.strictEqual(head.headers["sec-websocket-version"], expected === 426 ? "13" : undefined)
        assert.strictEqual(head.headers.upgrade, expected === 426 ? "websocket" : undefined)
      }
    })
  )

  it.scoped("a page of http is not the same host's over TLS, and one of https is", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app({}), { kind: "tls" })
      for (const [scheme, expected] of [
        ["http", 403],
        ["https", 101]
      ] as const) {
        const peer = yield* connect
        yield* peer.send(asking([key, version, `Origin: ${scheme}://example.com`]))
        assert.strictEqual((yield* peer.receiveHead).status, expected)
      }
    })
  )

  it.scoped.each(["tcp", "tls"] as const)("a client of ws agrees with the answer over %s", (kind) =>
    Effect.gen(function* () {
      const { port } = yield* serve(app({ subprotocols: ["v2", "v1"], compression: { serverMaxWindowBits: 12 } }), {
        kind
      })
      const socket = new Ws.WebSocket(`${kind === "tls" ? "wss" : "ws"}://localhost:${port}`, ["v1", "v2"], {
        ...clientTls,
        origin: `${kind === "tls" ? "https" : "http"}://localhost:${port}`,
        lookup: (_host: string, _options: unknown, callback: any) =>
          callback(null, [{ address: "127.0.0.1", family: 4 }])
      } as Ws.ClientOptions)
      yield* Effect.promise(() => once(socket, "open"))
      assert.strictEqual(socket.protocol, "v2")
      assert.strictEqual(socket.extensions, "permessage-deflate")
      socket.terminate()
    })
  )

  it.scoped("a server of ws answers what a client here offers, and its answer is verified", () =>
    Effect.gen(function* () {
      const server = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const made = new Ws.WebSocketServer({
            port: 0,
            host: "127.0.0.1",
            perMessageDeflate: { clientMaxWindowBits: 11, serverNoContextTakeover: true },
            handleProtocols: () => "v1"
          })
          await once(made, "listening")
          return made
        }),
        (made) => Effect.async<void>((resume) => made.close(() => resume(Effect.void)))
      )
      const options: HandshakeOptions = {
        subprotocols: ["v2", "v1"],
        requireSubprotocol: true,
        compression: { clientMaxWindowBits: 12 }
      }
      const sent = offer(options)
      const request = Http.get({
        port: (server.address() as AddressInfo).port,
        host: "127.0.0.1",
        headers: { ...sent, connection: "Upgrade", upgrade: "websocket" }
      })
      const [response, socket] = yield* Effect.promise(
        () => once(request, "upgrade") as Promise<[Http.IncomingMessage, import("node:net").Socket]>
      )
      socket.destroy()
      const headers = Headers.fromInput(response.headers as Record<string, string>)
      assert.strictEqual(headers["sec-websocket-protocol"], "v1")
      assert.include(headers["sec-websocket-extensions"], "client_max_window_bits=11")
      assert.isUndefined(verify({ headers }, sent, options))
      assert.isDefined(verify({ headers }, offer(options), options))
    })
  )
})
