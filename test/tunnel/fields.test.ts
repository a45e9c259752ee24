import * as Cookies from "@effect/platform/Cookies"
import { assert, describe, it } from "@effect/vitest"
import * as FastCheck from "effect/FastCheck"
import {
  endToEnd,
  type Origin,
  recordOf,
  requestFields,
  responseFields,
  valueOf
} from "../../src/internal/tunnel/fields.js"
import { runs } from "../support.js"

const origin: Origin = { address: "192.0.2.7", host: "example.com:8080", secure: true, version: "1.1" }

const options = { trust: false, via: "proxy", host: "backend:4000" }

const request = (raw: ReadonlyArray<string>, from: Partial<Origin> = {}, trust = false) =>
  recordOf(requestFields(raw, { ...origin, ...from }, { ...options, trust }))

describe("what an intermediary forwards", () => {
  it("RFC 9110 §7.6.1: is without the fields of one connection, and those that Connection lists, in any case", () => {
    const raw = [
      ["Host", "a"],
      ["Connection", 'keep-alive, X-Hop , "quoted, X-Own"'],
      ["connection", "x-other,TE,,"],
      ["Keep-Alive", "timeout=5"],
      ["Proxy-Authorization", "Basic x"],
      ["Proxy-Authenticate", "Basic"],
      ["Proxy-Authentication-Info", "x"],
      ["Proxy-Connection", "keep-alive"],
      ["TE", "trailers"],
      ["Trailer", "Expires"],
      ["Transfer-Encoding", "chunked"],
      ["Upgrade", "h2c"],
      ["HTTP2-Settings", "x"],
      ["X-Hop", "1"],
      ["X-OTHER", "2"],
      ["X-Own", "3"],
      ["Authorization", "Basic y"]
    ].flat()
    assert.deepStrictEqual(endToEnd(raw), [
      ["Host", "a"],
      ["X-Own", "3"],
      ["Authorization", "Basic y"]
    ])
  })

  it("RFC 9110 §7.6.1: keeps Host and the length, though Connection may list them: the message would be another", () => {
    const raw = ["Connection", "Host, Content-Length, close", "Host", "a", "Content-Length", "5"]
    assert.deepStrictEqual(endToEnd(raw), [
      ["Host", "a"],
      ["Content-Length", "5"]
    ])
  })

  it("keeps all else as it stands and in order, whatever it is", () => {
    const name = FastCheck.stringMatching(/^X-[A-Za-z0-9]{1,8}$/)
    const fields = FastCheck.array(FastCheck.tuple(name, FastCheck.stringMatching(/^[ -~]{0,10}$/)))
    FastCheck.assert(
      FastCheck.property(fields, fields, (before, after) => {
        const raw = [...before, ["Connection", "close"] as const, ...after].flat()
        assert.deepStrictEqual(endToEnd(raw), [...before, ...after])
      }),
      { numRuns: runs(100) }
    )
  })
})

describe("what a backend is told of the client", () => {
  const told = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via", "host"]
  const of = (record: Record<string, string>) => Object.fromEntries(told.map((name) => [name, record[name]]))

  it("RFC 7239: is who is connected, by what name and how, in place of what the client says itself", () => {
    const lies = [
      ["Host", "example.com:8080"],
      ["Forwarded", "for=10.0.0.1"],
      ["X-Forwarded-For", "10.0.0.1"],
      ["x-forwarded-host", "internal"],
      ["X-Forwarded-Proto", "http"],
      ["X-Forwarded-Port", "1"],
      ["X-Forwarded-User", "root"],
      ["Expect", "100-continue"]
    ].flat()
    assert.deepStrictEqual(
      { ...request(lies) },
      {
        host: "backend:4000",
        via: "1.1 proxy",
        forwarded: 'for=192.0.2.7;host="example.com:8080";proto=https',
        "x-forwarded-for": "192.0.2.7",
        "x-forwarded-host": "example.com:8080",
        "x-forwarded-proto": "https"
      }
    )
  })

  it("is continued where what came in is trusted", () => {
    const raw = [
      ["Forwarded", "for=a"],
      ["Forwarded", "for=b;proto=https"],
      ["X-Forwarded-For", "1.1.1.1, 2.2.2.2"],
      ["X-Forwarded-Host", "public.example"],
      ["X-Forwarded-Proto", "https"],
      ["Via", "1.0 first"]
    ].flat()
    assert.deepStrictEqual(of(request(raw, { secure: false, host: "a" }, true)), {
      forwarded: "for=a, for=b;proto=https, for=192.0.2.7;host=a;proto=http",
      "x-forwarded-for": "1.1.1.1, 2.2.2.2, 192.0.2.7",
      "x-forwarded-host": "public.example",
      "x-forwarded-proto": "https",
      via: "1.0 first, 1.1 proxy",
      host: "backend:4000"
    })
  })

  it("RFC 7239 §6: of an IPv6 address stands in brackets and quotes, and of none is unknown", () => {
    assert.strictEqual(
      request([], { address: "2001:db8::7", host: "a" }).forwarded,
      'for="[2001:db8::7]";host=a;proto=https'
    )
    const unix = request([], { address: undefined, host: undefined })
    assert.deepStrictEqual(
      [unix.forwarded, unix["x-forwarded-for"], unix["x-forwarded-host"]],
      ["for=unknown;proto=https", undefined, undefined]
    )
  })

  it("RFC 7239 §4: cannot be written by the client's Host: what could end a value is quoted", () => {
    const { forwarded } = request([], { host: 'a";for=10.0.0.1;by="\\' })
    assert.strictEqual(forwarded, 'for=192.0.2.7;host="a\\";for=10.0.0.1;by=\\"\\\\";proto=https')
  })

  it("cannot be taken off by listing it in Connection", () => {
    const raw = ["Connection", "X-Forwarded-For, Forwarded, Via, Host", "Host", "a"]
    assert.strictEqual(request(raw)["x-forwarded-for"], "192.0.2.7")
    assert.isDefined(request(raw).via)
  })
})

describe("a response's fields", () => {
  const set = [
    "a=1; Path=/; Expires=Wed, 09 Jun 2027 10:18:14 GMT; HttpOnly",
    "a=2; Path=/other; Partitioned; New-Attribute=x",
    'b="quoted; not"; SameSite=Lax'
  ]

  it.each([
    ["as they came", set.map((line) => ["Set-Cookie", line] as const)],
    ["joined to one", [["set-cookie", set.join(", ")] as const]]
  ])("have every cookie as it was set, %s", (_, fields) => {
    const { cookies, headers } = responseFields(fields, "1.1", "proxy")
    assert.deepStrictEqual(Cookies.toSetCookieHeaders(cookies), set)
    assert.deepStrictEqual({ ...headers }, { via: "1.1 proxy" })
  })

  it("RFC 9110 §5.3: are one list where lines have one name, and Via is continued", () => {
    const { headers } = responseFields(
      [
        ["Link", "<a>"],
        ["link", "<b>"],
        ["Via", "1.1 other"]
      ],
      "1.0",
      "proxy"
    )
    assert.deepStrictEqual({ ...headers }, { link: "<a>, <b>", via: "1.1 other, 1.0 proxy" })
  })

  it("RFC 6265 §5.4: of a request's Cookie are joined by a semicolon", () => {
    assert.deepStrictEqual(
      {
        ...recordOf([
          ["Cookie", "a=1"],
          ["cookie", "b=2"],
          ["__proto__", "x"]
        ])
      },
      { cookie: "a=1; b=2", ["__proto__"]: "x" }
    )
    assert.isUndefined(valueOf([], "cookie"))
  })
})
