/** The laws see what they are there to see: servers that break one are told so, and a simple right one is not. */
import * as http from "node:http"
import type { Duplex } from "node:stream"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { pair } from "../../src/internal/memory.js"
import { Laws, Peer } from "../../src/testing/index.js"

type OnUpgrade = (socket: Duplex, head: Buffer, request?: http.IncomingMessage) => void

const head101 = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

const onRequest = (request: http.IncomingMessage, response: http.ServerResponse) => {
  request.resume()
  const answer = () => response.end(`you asked for ${request.url}`)
  if (request.url === "/slow") {
    setImmediate(() => setImmediate(answer))
  } else {
    answer()
  }
}

const ordinary = ["/plain", "/slow"] as const

/** A server of Node's alone, in memory. */
const served = (
  onUpgrade: OnUpgrade,
  more: Partial<Laws.Target> = {},
  listen: (server: http.Server) => void = () => {}
): Laws.Target => {
  const server = http.createServer(onRequest)
  server.on("upgrade", (request, socket, head) => {
    if ((ordinary as ReadonlyArray<string>).includes(request.url!)) {
      // Node has left it to this listener: answered by hand, and given back
      const body = `you asked for ${request.url}`
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
      socket.unshift(head)
      server.emit("connection", socket)
    } else {
      onUpgrade(socket, head, request)
    }
  })
  listen(server)
  return {
    connect: Effect.suspend(() => {
      const [accepted, client] = pair()
      server.emit("connection", accepted)
      return Peer.fromDuplex(client)
    }),
    protocol: "echo",
    switched: "/echo",
    ordinary,
    ...more
  }
}

const guard = (socket: Duplex) => socket.on("error", () => socket.destroy())

const echo: OnUpgrade = (socket, head) => {
  guard(socket)
  socket.write(head101)
  socket.write(head)
  socket.pipe(socket)
}

/**
 * A server that knows heads alone, and answers each the same: no Upgrade field means anything to it, nor does CONNECT. One
 * that comes in more pieces than `most` is refused.
 */
const byHand = (more: Partial<Laws.Target> = {}, most = Infinity): Laws.Target => ({
  connect: Effect.suspend(() => {
    const [accepted, client] = pair()
    let received = ""
    let pieces = 0
    guard(accepted)
    accepted.on("end", () => accepted.end())
    accepted.on("data", (bytes: Buffer) => {
      pieces++
      const heads = (received + bytes.toString("latin1")).split("\r\n\r\n")
      received = heads.pop()!
      for (const head of heads) {
        const interim = head.startsWith("HEAD ") ? "HTTP/1.1 103 Early Hints\r\n\r\n" : ""
        accepted.write(
          `${interim}HTTP/1.1 ${head.includes("/refused") || pieces > most ? "403 Forbidden" : "200 OK"}\r\nContent-Length: 2\r\n\r\n${head.startsWith("HEAD ") ? "" : "ok"}`
        )
      }
    })
    return Peer.fromDuplex(client)
  }),
  protocol: "echo/1",
  switched: "/echo",
  ordinary: "/plain",
  ...more
})

/** The law is broken, for this reason. One that is broken by waiting in vain need not wait for long. */
const breaks = (law: keyof typeof Laws.laws, target: Laws.Target, reason: RegExp) =>
  Effect.gen(function* () {
    const timeout = reason.source.includes("it waited for") ? 100 : 400
    const error = yield* Effect.flip(Laws.laws[law](target, { numRuns: 100, timeout }))
    assert.strictEqual(error.law, law)
    assert.match(error.message, reason)
    assert.isNotEmpty(error.input)
    const again = yield* Effect.flip(Laws.laws[law](target, { seed: error.seed, path: error.path, timeout }))
    assert.deepStrictEqual(again.input, error.input)
  })

describe("a bare server that echoes", () => {
  for (const law of ["bytes", "noBody", "halfClose", "boundedMemory"] as const) {
    it.live(`keeps the law "${law}"`, () => Laws.laws[law](served(echo), { numRuns: 30 }))
  }

  it.live('breaks the law "oneAnswer": its 101 overtakes a slow response', () =>
    breaks("oneAnswer", served(echo), /where the answer to request \d, GET \/\w+ should be/)
  )
})

it.live("all laws are tried one after the other, up to the first that is broken", () =>
  Effect.gen(function* () {
    const error = yield* Effect.flip(Laws.all(served(echo), { numRuns: 30 }))
    assert.strictEqual(error.law, "oneAnswer")
  })
)

it.live("a server that cannot be reached breaks a law", () =>
  breaks("bytes", served(echo, { connect: Effect.fail("nobody listens") }), /it could not connect: nobody listens/)
)

it.live("a server that knows no Upgrade field ignores one", () =>
  Laws.ignoredUpgrade(byHand({ tunnels: true }), { numRuns: 30 })
)

it.live("a server that hints at what is to come before it answers HEAD keeps the law", () =>
  Laws.ignoredUpgrade(byHand({ tunnels: true, ordinary: { path: "/plain", method: "HEAD" } }), { numRuns: 30 })
)

it.live("what is thrown when the last run is over breaks a law", () =>
  Effect.gen(function* () {
    const target = served((socket, head, request) => {
      socket.on("close", () => setImmediate(() => setImmediate(() => Promise.reject("late"))))
      echo(socket, head, request)
    })
    const error = yield* Effect.flip(Laws.bytes(target, { numRuns: 1 }))
    assert.match(error.message, /there was an unhandledRejection: late/)
  })
)

describe("a law is broken by a server that", () => {
  it.live("drops the bytes behind the handshake", () =>
    breaks(
      "bytes",
      served((socket, head) => echo(socket, head.subarray(head.length))),
      /the echo of \d+ bytes/
    )
  )

  it.live("reads the bytes behind the handshake twice", () =>
    breaks(
      "bytes",
      served((socket, head) => echo(socket, Buffer.concat([head, head]))),
      /the echo|behind the last byte of the echo/
    )
  )

  it.live("takes the body of the request for bytes behind it", () =>
    breaks(
      "bytes",
      served(
        (socket, head, request) => {
          // What an 'upgrade' listener sees before Node 26
          const body = request!.headers["content-length"] === undefined ? "" : "body"
          echo(socket, Buffer.concat([Buffer.from(body), head]))
        },
        { switched: { method: "POST", path: "/echo" } }
      ),
      /the echo of \d+ bytes|behind the last byte/
    )
  )

  it.live("frames a body on its 101", () =>
    breaks(
      "noBody",
      served((socket) => {
        guard(socket)
        socket.end(`${head101.trimEnd()}\r\nContent-Length: 5\r\n\r\nhello`)
      }),
      /the 101 frames content/
    )
  )

  it.live("writes behind its 101 what is not the session's", () =>
    breaks(
      "noBody",
      served((socket, head) => echo(socket, Buffer.concat([Buffer.from("hello"), head]))),
      /"hello" came behind the 101/
    )
  )

  it.live("lets a handler put a body on its 101", () =>
    breaks("noBody", served(echo, { bodied: "/bodied" }), /the answer was 101 Switching Protocols, and not a 5xx/)
  )

  it.live("answers an upgrade that it ignores by hand, and differently", () =>
    breaks("ignoredUpgrade", served(echo, { tunnels: true }), /where the answer to request 1/)
  )

  it.live("answers CONNECT with 200", () =>
    breaks("ignoredUpgrade", byHand(), /the answer was 200 OK, and not an error/)
  )

  it.live("reads what follows a refused request as the next one", () =>
    breaks(
      "ignoredUpgrade",
      byHand({ refused: "/refused", tunnels: true }),
      /came behind the 403, where what follows must not be read as HTTP/
    )
  )

  it.live("does not end when the peer has", () =>
    breaks(
      "halfClose",
      served((socket, head) => {
        guard(socket)
        socket.write(head101)
        socket.write(head)
        socket.pipe(socket, { end: false })
      }),
      /it waited for the FIN behind the last byte of the echo, and 100 ms were over/
    )
  )

  it.live("is gone when the peer has ended", () =>
    breaks(
      "halfClose",
      served((socket, head) => {
        guard(socket)
        socket.write(head101)
        const pieces = [head]
        socket.on("data", (bytes: Buffer) => pieces.push(bytes))
        socket.on("end", () => socket.destroy())
      }),
      /nothing came, and not .*, where the echo/
    )
  )

  it.live("reads no more once it has ended", () =>
    breaks(
      "halfClose",
      served(
        (socket, head, request) => {
          if (request!.url === "/ending") {
            guard(socket)
            socket.end(head101)
            socket.resume()
          } else {
            echo(socket, head, request)
          }
        },
        { ending: { request: "/ending", read: Effect.succeed(Buffer.from("something else")) } }
      ),
      /the session read "something else"/
    )
  )

  it.live("takes whatever comes, with no regard for its own writes", () =>
    breaks(
      "boundedMemory",
      served((socket, head) => {
        guard(socket)
        socket.write(head101)
        socket.write(head)
        socket.on("data", (bytes) => socket.write(bytes))
        socket.on("end", () => socket.end())
      }),
      /KiB were taken from a peer that reads nothing/
    )
  )

  it.live("keeps what ended sessions had", () => {
    let open = 0
    return breaks(
      "scope",
      served(
        (socket, head, request) => {
          open++
          echo(socket, head, request)
        },
        { open: Effect.sync(() => open) }
      ),
      /it waited for what is open at the server \(\d+\) to close/
    )
  })

  it.live("closes with input unread, which resets what it has just written", () => {
    const says = "good bye".repeat(1000)
    return breaks(
      "scope",
      served(
        (socket, head, request) => {
          if (request!.url === "/closing") {
            guard(socket)
            socket.pause()
            socket.write(`${head101}${says}`)
            setImmediate(() => socket.destroy())
          } else {
            echo(socket, head, request)
          }
        },
        { closing: { request: "/closing", says } }
      ),
      /the connection was reset before/
    )
  })

  it.live("listens to no errors on what it took", () =>
    breaks(
      "hostilePeers",
      served((socket, head) => {
        socket.write(head101)
        socket.write(head)
        socket.pipe(socket)
      }),
      /there was an uncaughtException: Error: (read|write) (ECONNRESET|EPIPE)/
    )
  )

  it.live("dies of a FIN, by an app that throws", () =>
    breaks(
      "hostilePeers",
      served((socket, head) => {
        echo(socket, head)
        socket.on("end", () => Promise.reject(new Error("a FIN")))
      }),
      /there was an unhandledRejection: Error: a FIN.*ends, and reads until the server does/s
    )
  )

  it.live("changes a byte late in what it echoes", () =>
    breaks(
      "bytes",
      served((socket, head) => {
        guard(socket)
        socket.write(head101)
        head[100]! ^= 1
        socket.write(head)
        socket.pipe(socket)
      }),
      /came from byte 60 on, and not/
    )
  )

  it.live("cannot be asked: what connects to it dies", () =>
    breaks("bytes", served(echo, { connect: Effect.die("no way there") }), /the run failed otherwise: .*no way there/)
  )

  it.live("closes at once", () =>
    breaks(
      "bytes",
      served((socket) => socket.end()),
      /the connection ended before the 101 came; unread is ""/
    )
  )

  it.live("is left by its own peer", () =>
    breaks(
      "bytes",
      served(echo, {
        connect: Effect.suspend(() => {
          const client = pair()[1]
          client.destroy()
          return Peer.fromDuplex(client)
        })
      }),
      /the connection was closed before the 101 came/
    )
  )

  it.live("answers with what is no HTTP", () =>
    breaks(
      "bytes",
      served((socket) => socket.end("hello\r\n\r\n")),
      /where the 101 should be: "hello/
    )
  )

  it.live("does not switch", () => breaks("bytes", byHand(), /the answer was 200 OK, and not 101/))

  it.live("counts the pieces that a request comes in", () =>
    breaks("ignoredUpgrade", byHand({ tunnels: true }, 9), /sends ".*, every byte by itself/s)
  )

  it.live("cannot be left: the run that waits for that is given up, and told with its seed", () =>
    breaks(
      "bytes",
      served(() => {}, {
        connect: Effect.acquireRelease(
          Effect.suspend(() => Peer.fromDuplex(pair()[1])),
          () => Effect.never
        )
      }),
      /it waited for the 101, and did not end when it was interrupted after 100 ms/
    )
  )

  it.live("does not answer at all", () =>
    breaks(
      "oneAnswer",
      served(() => {}),
      /it waited for (the 101|the answer to)/
    )
  )
})
