import * as HttpApp from "@effect/platform/HttpApp"
import { RouteNotFound } from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Stream from "effect/Stream"
import * as Arbitrary from "../../src/testing/Arbitrary.js"
import {
  type App,
  asking,
  echo,
  kinds,
  message,
  type Options,
  type Running,
  runs,
  serve,
  serveOrdinary,
  turn,
  withoutDate
} from "../support.js"

const answers = {
  text: Effect.succeed(HttpServerResponse.text("plain")),
  unread: Effect.succeed(HttpServerResponse.text("the body was not read")),
  empty: Effect.succeed(HttpServerResponse.empty()),
  notModified: Effect.succeed(HttpServerResponse.empty({ status: 304, headers: { etag: '"1"' } })),
  // In one chunk, as all streams here: how many Node makes of several depends on when each is written
  stream: Effect.succeed(HttpServerResponse.stream(Stream.make(Buffer.from("streamed")))),
  cookie: Effect.flatMap(Effect.succeed(HttpServerResponse.text("")), HttpServerResponse.setCookie("a", "b")),
  slow: Effect.as(Effect.repeatN(turn, 3), HttpServerResponse.text("slow")),
  die: Effect.die("a defect"),
  close: Effect.succeed(HttpServerResponse.text("last", { headers: { connection: "close" } })),
  hook: Effect.as(
    HttpApp.appendPreResponseHandler((_, response) =>
      Effect.succeed(HttpServerResponse.setHeader(response, "x-hook", "1"))
    ),
    HttpServerResponse.text("hooked")
  ),
  body: Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
    Effect.map(Effect.orDie(request.arrayBuffer), (bytes) => HttpServerResponse.uint8Array(new Uint8Array(bytes)))
  ),
  slowBody: Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
    Effect.repeatN(turn, 3).pipe(
      Effect.zipRight(Effect.orDie(request.arrayBuffer)),
      Effect.map((bytes) => HttpServerResponse.text(`${bytes.byteLength}`))
    )
  ),
  streamBody: Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
    Effect.map(Effect.orDie(Stream.runCollect(request.stream)), (pieces) =>
      HttpServerResponse.stream(Stream.make(Buffer.concat([Buffer.from(">"), ...pieces])))
    )
  ),
  head: Effect.map(HttpServerRequest.HttpServerRequest, ({ headers, method, url }) => {
    const { upgrade: _, ...others } = headers
    return HttpServerResponse.unsafeJson({ method, url, headers: others })
  })
} satisfies Record<string, HttpApp.Default<unknown>>

type Answer = keyof typeof answers

const app: HttpApp.Default<unknown> = Effect.flatMap(
  HttpServerRequest.HttpServerRequest,
  (request): HttpApp.Default<unknown> =>
    answers[request.headers["x-answer"] as Answer] ?? Effect.fail(new RouteNotFound({ request }))
)

/** The same request without its Upgrade field. */
const withoutUpgrade = (request: Uint8Array | string): Buffer => {
  const bytes = Buffer.from(request as string)
  const end = bytes.indexOf("\r\n\r\n")
  const head = bytes.toString("latin1", 0, end).replace(/\r\n(?:upgrade:.*(?:\r\n)?)+/gi, "\r\n")
  return Buffer.concat([Buffer.from(head.replace(/\r\n$/, ""), "latin1"), bytes.subarray(end)])
}

/** What one request is answered with, up to the end of its connection. */
const closedBehind = (request: string) =>
  Effect.gen(function* () {
    const [received, expected] = yield* Effect.forEach(
      [
        [yield* serve(app), request],
        [yield* serveOrdinary(app), withoutUpgrade(request)]
      ] as const,
      ([{ connect }, bytes]) =>
        Effect.scoped(
          Effect.gen(function* () {
            const peer = yield* connect
            yield* peer.send(bytes)
            return withoutDate(yield* peer.receiveAll)
          })
        )
    )
    assert.strictEqual(received, expected)
  })

const last = message("GET / HTTP/1.1", ["Host: a", "X-Answer: text", "Connection: close"])

const ask = (running: Running, bytes: Uint8Array | string, at: ReadonlyArray<number> = []) =>
  Effect.scoped(
    Effect.gen(function* () {
      const peer = yield* running.connect
      yield* peer.sendSplit(Buffer.concat([Buffer.from(bytes as string), Buffer.from(last)]), at)
      return withoutDate(yield* peer.receiveAll)
    })
  )

const both = (options: Pick<Options, "kind" | "node">) => Effect.all([serve(app, options), serveOrdinary(app, options)])

/** What both servers answer; it is the same. */
const answered = (requests: ReadonlyArray<string>, options: Pick<Options, "kind" | "node"> = {}) =>
  Effect.gen(function* () {
    const [ours, ordinary] = yield* both(options)
    const [received, expected] = yield* Effect.all([
      ask(ours, requests.join("")),
      ask(ordinary, Buffer.concat(requests.map(withoutUpgrade)))
    ])
    assert.strictEqual(received, expected)
    return received
  })

// What is sent behind "close" may reset the connection, so it is for requests by themselves; one more is for no route
const answer = FastCheck.constantFrom("missing", ...Object.keys(answers).filter((answer) => answer !== "close"))

const request = (expects: boolean) =>
  FastCheck.tuple(answer, FastCheck.boolean()).chain(([answer, asks]) =>
    Arbitrary.request({
      headers: (asks ? Arbitrary.upgradeFields() : FastCheck.constant<ReadonlyArray<Arbitrary.Field>>([])).map(
        (fields): ReadonlyArray<Arbitrary.Field> => [
          ["X-Answer", answer],
          ...(expects ? [["Expect", "100-continue"] as const] : []),
          ...fields
        ]
      )
    })
  )

// Node itself puts the 100 of a pipelined request into its response, so only the first one expects it
const pipeline = Arbitrary.split(
  Arbitrary.pipeline(
    FastCheck.tuple(
      FastCheck.nat({ max: 9 }).chain((n) => request(n === 0)),
      FastCheck.array(request(false), { maxLength: 3 })
    ).map(([first, others]) => [first, ...others])
  )
)

describe.each(kinds)("over %s", (kind) => {
  it.scoped("an upgrade that is ignored is answered byte for byte as if it had not been asked for", () =>
    Effect.gen(function* () {
      const [ours, ordinary] = yield* both({ kind })
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(pipeline, ({ at, bytes, requests }) =>
            Effect.gen(function* () {
              const received = yield* ask(ours, bytes, at)
              const expected = yield* ask(ordinary, Buffer.concat(requests.map(({ bytes }) => withoutUpgrade(bytes))))
              assert.strictEqual(received, expected)
            }).pipe(Effect.runPromise)
          ),
          { numRuns: runs(kind === "tcp" ? 80 : 25) }
        )
      )
    })
  )

  it.scoped("a Java client's h2c with a POST body is an ordinary request, kept alive", () =>
    Effect.gen(function* () {
      const java = message(
        "POST /orders HTTP/1.1",
        [
          "Connection: Upgrade, HTTP2-Settings",
          "Content-Length: 15",
          "Host: localhost:8080",
          "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
          "Upgrade: h2c",
          "User-Agent: Java-http-client/21.0.1",
          "Content-Type: application/json",
          "X-Answer: body"
        ],
        '{"answer": 42}\n'
      )
      const received = yield* answered([java, java, java], { kind })
      assert.strictEqual(received.match(/HTTP\/1\.1 200 OK/g)?.length, 4)
      assert.strictEqual(received.match(/\{"answer": 42\}\n/g)?.length, 3)
    })
  )
})

describe("an upgrade that is ignored", () => {
  it.scoped.each(Object.keys(answers) as Array<Answer>)("is invisible where the answer is %s", (answer) =>
    Effect.gen(function* () {
      const fields = [`X-Answer: ${answer}`]
      const requests = [
        asking("/", { fields }),
        asking("/", { fields, method: "HEAD" }),
        asking("http://example.com/absolute?a=b", { fields, connection: "keep-alive, Upgrade" }),
        asking("*", { fields, method: "OPTIONS" }),
        asking("/", { fields: [...fields, "Content-Length: 5"], method: "POST", content: "12345" }),
        asking("/", {
          fields: [...fields, "Transfer-Encoding: chunked"],
          method: "PUT",
          content: "5;a=b\r\n12345\r\n0\r\nX-T: 1\r\n\r\n"
        }),
        asking("/", { fields: [...fields, "Expect: 100-continue"] })
      ]
      if (answer === "close") {
        yield* Effect.forEach(requests, closedBehind)
      } else {
        yield* answered(requests)
        yield* Effect.forEach(requests, (request) => answered([request]))
      }
    })
  )

  it.scoped.each([
    ["without keep-alive", { keepAliveTimeout: 0 }],
    ["with a longer one", { keepAliveTimeout: 61_000 }],
    ["with another error for a missing Host", { requireHostHeader: false }]
  ] as ReadonlyArray<readonly [string, NonNullable<Options["node"]>]>)("is invisible on a server %s", ([_, node]) =>
    answered([asking("/", { fields: ["X-Answer: text"] }), asking("/", { fields: ["X-Answer: body"] })], { node })
  )

  it.scoped("is invisible to a limit of requests a connection", () =>
    Effect.gen(function* () {
      const [ours, ordinary] = yield* both({})
      for (const { server } of [ours, ordinary]) {
        server.maxRequestsPerSocket = 3
      }
      const requests = Array.from({ length: 5 }, () => asking("/", { fields: ["X-Answer: text"] }))
      const [received, expected] = yield* Effect.all([
        ask(ours, requests.join("")),
        ask(ordinary, Buffer.concat(requests.map(withoutUpgrade)))
      ])
      assert.strictEqual(received, expected)
    })
  )

  it.scoped.each(["1.0", "1.1"])("is invisible with Connection: close in HTTP/%s", (version) =>
    Effect.gen(function* () {
      for (const connection of ["close, Upgrade", "Upgrade, close", "Upgrade"]) {
        const ask = (running: Running, fields: ReadonlyArray<string>) =>
          Effect.gen(function* () {
            const peer = yield* running.connect
            yield* peer.send(
              message(`GET / HTTP/${version}`, ["Host: a", `Connection: ${connection}`, "X-Answer: text", ...fields])
            )
            if (version === "1.1" && connection === "Upgrade") {
              return withoutDate((yield* peer.receiveResponse).raw)
            }
            return withoutDate(yield* peer.receiveAll)
          }).pipe(Effect.scoped)
        const [ours, ordinary] = yield* both({})
        assert.strictEqual(yield* ask(ours, ["Upgrade: h2c"]), yield* ask(ordinary, []))
      }
    })
  )

  it.scoped("leaves the timeouts of the connection as an ordinary request does", () =>
    Effect.gen(function* () {
      const seen = (running: Running, upgrade: boolean) =>
        Effect.gen(function* () {
          const socket = yield* Deferred.make<{ readonly timeout?: number }>()
          running.server.once("connection", (it) => Deferred.unsafeDone(socket, Effect.succeed(it)))
          running.server.timeout = 50_000
          const peer = yield* running.connect
          const timeouts: Array<number | undefined> = []
          for (let i = 0; i < 2; i++) {
            const request = asking("/", { fields: ["X-Answer: text"] })
            yield* peer.send(upgrade ? request : withoutUpgrade(request))
            yield* peer.receiveResponse
            yield* Effect.repeatN(turn, 2)
            timeouts.push((yield* Deferred.await(socket)).timeout)
          }
          return timeouts
        }).pipe(Effect.scoped)
      const [ours, ordinary] = yield* both({ node: { keepAliveTimeout: 7000 } })
      assert.deepStrictEqual(yield* seen(ours, true), yield* seen(ordinary, false))
    })
  )

  it.scoped.each(kinds)("gives the connection back without announcing it to others again, over %s", (kind) =>
    Effect.gen(function* () {
      const { connect, server } = yield* serve(answers.text, { kind })
      const announced: Array<unknown> = []
      for (const event of ["connection", "secureConnection"]) {
        server.on(event, (socket) => announced.push([event, socket]))
      }
      const peer = yield* connect
      for (let i = 0; i < 3; i++) {
        yield* peer.send(asking("/"))
        assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      }
      assert.lengthOf(announced, kind === "tls" ? 2 : 1)
    })
  )

  it.scoped("gives the connection back to a server whose listener somebody has wrapped", () =>
    Effect.gen(function* () {
      const { connect, server } = yield* serve(answers.text)
      const [own, ...others] = server.listeners("connection")
      server.removeAllListeners("connection")
      for (const listener of [(socket: unknown) => Reflect.apply(own!, server, [socket]), ...others]) {
        server.on("connection", (socket) => Reflect.apply(listener, server, [socket]))
      }
      const peer = yield* connect
      for (let i = 0; i < 3; i++) {
        yield* peer.send(asking("/"))
        assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      }
    })
  )

  it.scoped("hides nothing that is pipelined behind it in its packet", () =>
    Effect.gen(function* () {
      const requests = Array.from({ length: 20 }, (_, i) => asking(`/${i}`, { fields: ["X-Answer: head"] }))
      const received = yield* answered(requests)
      assert.deepStrictEqual(
        [...received.matchAll(/"url":"\/(\d+)"/g)].map(([_, i]) => Number(i)),
        Array.from({ length: 20 }, (_, i) => i)
      )
    })
  )

  it.scoped("has a body of a megabyte that is answered whole, or discarded", () =>
    Effect.gen(function* () {
      const content = "0123456789abcde\n".repeat(65536)
      for (const answer of ["body", "streamBody", "unread", "slowBody"] as const) {
        const fields = [`X-Answer: ${answer}`, `Content-Length: ${content.length}`]
        yield* answered([asking("/", { method: "POST", fields, content }), asking("/", { fields: ["X-Answer: text"] })])
      }
    })
  )

  it.scoped("is a form, or a multipart one, for the handler", () =>
    Effect.gen(function* () {
      const forms: App = Effect.gen(function* () {
        const request = yield* HttpServerRequest.HttpServerRequest
        if (request.headers["content-type"]!.startsWith("multipart/")) {
          const { a } = yield* Effect.orDie(request.multipart)
          return HttpServerResponse.text(String(a))
        }
        const form = yield* Effect.orDie(request.urlParamsBody)
        return HttpServerResponse.text(JSON.stringify(form))
      }).pipe(Effect.scoped) as App
      const { connect } = yield* serve(forms)
      const peer = yield* connect
      yield* peer.send(
        asking("/", {
          method: "POST",
          fields: ["Content-Type: application/x-www-form-urlencoded", "Content-Length: 7"],
          content: "a=1&b=2"
        })
      )
      assert.include((yield* peer.receiveResponse).text, '"a"')
      const part = '--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nvalue\r\n--x--\r\n'
      yield* peer.send(
        asking("/", {
          method: "POST",
          fields: ["Content-Type: multipart/form-data; boundary=x", `Content-Length: ${part.length}`],
          content: part
        })
      )
      assert.strictEqual((yield* peer.receiveResponse).text, "value")
    })
  )

  it.scoped("has a body that comes after its answer, which the next request is behind", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(app)
      const peer = yield* connect
      yield* peer.send(asking("/", { method: "POST", fields: ["X-Answer: unread", "Content-Length: 10"] }))
      assert.strictEqual((yield* peer.receiveResponse).text, "the body was not read")
      yield* peer.send("GET / HTTP")
      yield* peer.send(asking("/", { fields: ["X-Answer: text"] }))
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
    })
  )

  it.scoped("runs its handler once", () =>
    Effect.gen(function* () {
      let calls = 0
      const { connect } = yield* serve(
        Effect.sync(() => {
          calls++
          return HttpServerResponse.text("plain")
        })
      )
      const peer = yield* connect
      for (let i = 1; i <= 3; i++) {
        yield* peer.send(asking("/"))
        yield* peer.receiveResponse
        assert.strictEqual(calls, i)
      }
    })
  )

  it.scoped("may be followed by one that is switched, on the same connection", () =>
    Effect.gen(function* () {
      const { connect } = yield* serve(
        Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ url }): App => (url === "/echo" ? echo : app))
      )
      const peer = yield* connect
      yield* peer.send(`${asking("/", { fields: ["X-Answer: text"] })}${asking("/echo")}early`)
      assert.strictEqual((yield* peer.receiveResponse).text, "plain")
      assert.strictEqual((yield* peer.receiveHead).status, 101)
      yield* peer.end
      assert.strictEqual(Buffer.from(yield* peer.receiveAll).toString(), "early")
    })
  )
})
