/** What this library uses of Node without Node's documenting it: each is there, and does what is expected, on every version. */
import { once } from "node:events"
import * as Http from "node:http"
import * as Https from "node:https"
import * as net from "node:net"
import { PassThrough } from "node:stream"
import * as tls from "node:tls"
import { afterEach, assert, describe, it } from "@effect/vitest"
import { bytesSent, unflow, unsent } from "../../src/internal/duplex/node.js"
import * as Node from "../../src/internal/http1/node.js"
import { asking, clientTls, message, withoutDate } from "../support.js"
import { cert, key } from "../testing/certificate.js"

const cleanups: Array<() => void> = []

afterEach(() => {
  for (const cleanup of cleanups.splice(0)) {
    cleanup()
  }
})

const open = async (server: Http.Server): Promise<{ readonly server: Http.Server; readonly port: number }> => {
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  cleanups.push(() => {
    server.close()
    server.closeAllConnections()
  })
  return { server, port: (server.address() as net.AddressInfo).port }
}

const listen = (node: Http.ServerOptions = {}) => open(Http.createServer(node))

const listenTls = () => open(Https.createServer({ key, cert, ca: cert }))

class Client {
  private text = ""
  readonly ended: Promise<unknown>

  constructor(readonly socket: net.Socket) {
    cleanups.push(() => socket.destroy())
    socket.on("error", () => {})
    socket.on("data", (bytes) => {
      this.text += bytes.toString("latin1")
      socket.emit("text")
    })
    this.ended = once(socket, "end")
  }

  static async connect(port: number): Promise<Client> {
    const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true })
    await once(socket, "connect")
    return new Client(socket)
  }

  static async secure(port: number): Promise<Client> {
    const socket = tls.connect({ port, host: "127.0.0.1", ...clientTls })
    await once(socket, "secureConnect")
    return new Client(socket)
  }

  async until(text: string): Promise<string> {
    while (!this.text.includes(text)) {
      await once(this.socket, "text")
    }
    const end = this.text.indexOf(text) + text.length
    const taken = this.text.slice(0, end)
    this.text = this.text.slice(end)
    return taken
  }

  async all(): Promise<string> {
    await this.ended
    return this.text
  }
}

const ignore = () => {}

type Upgrading = [request: Http.IncomingMessage, stream: net.Socket, head: Buffer]

/** The events of a server that gets a request, in the tick in which they fire. */
const upgrade = <A>(server: Http.Server, onUpgrade: (...event: Upgrading) => A): Promise<A> =>
  new Promise((resolve) => {
    // Without a listener Node destroys the socket, also when a body is complete whose event was emitted before
    server.on("upgrade", ignore)
    server.once("upgrade", (request, stream, head) => {
      cleanups.push(() => request.socket.destroy())
      resolve(onUpgrade(request, stream as net.Socket, head))
    })
  })

const read = async (request: Http.IncomingMessage): Promise<string> => {
  let text = ""
  for await (const bytes of request) {
    text += bytes
  }
  return text
}

describe("the event of an upgrade", () => {
  it("comes with no listener on the socket that hears an error, a drain or data", async () => {
    const { port, server } = await listen()
    const counts = upgrade(server, (_, socket) =>
      ["data", "error", "drain", "timeout"].map((name) => socket.listenerCount(name))
    )
    const client = await Client.connect(port)
    client.socket.write(asking("/"))
    assert.deepStrictEqual(await counts, [0, 0, 0, 0])
  })

  it("comes with the bytes behind the head and the socket itself", async () => {
    const { port, server } = await listen()
    const event = upgrade(server, (request, stream, head) => [stream === request.socket, head.toString()])
    const client = await Client.connect(port)
    client.socket.write(`${asking("/")}early`)
    assert.deepStrictEqual(await event, [true, "early"])
  })

  it.each([
    ["whole", ["Content-Length: 4"], "BODYEARLY"],
    ["incomplete", ["Content-Length: 4"], "BO"],
    ["to come", ["Content-Length: 4"], ""],
    ["chunked and whole", ["Transfer-Encoding: chunked"], "4\r\nBODY\r\n0\r\n\r\nEARLY"],
    ["chunked and incomplete", ["Transfer-Encoding: chunked"], "4\r\nBO"],
    ["chunked and malformed", ["Transfer-Encoding: chunked"], "x\r\n"]
  ])(
    "comes with the socket itself and an unparsed body, %s, where the parser stops at it",
    async (_, fields, content) => {
      const { port, server } = await listen()
      server.on("connection", Node.stopAtUpgrades)
      for (let i = 0; i < 2; i++) {
        const event = upgrade(server, (request, stream, head) => {
          assert.strictEqual(stream, request.socket)
          return { request, stream, head: head.toString() }
        })
        const client = await Client.connect(port)
        client.socket.write(asking("/", { method: "POST", fields, content }))
        const { head, request, stream } = await event
        assert.strictEqual(head, content)
        assert.strictEqual(request.readableLength, 0)
        // What comes next comes on the socket, and to nobody else
        const next = once(stream, "data")
        client.socket.write("LATE")
        assert.strictEqual(String((await next)[0]), "LATE")
      }
    }
  )

  it("comes again on a socket that was given back, and ordinary bodies are parsed there as ever", async () => {
    const { port, server } = await listen()
    server.on("connection", Node.stopAtUpgrades)
    server.on("request", (request, response) => {
      read(request).then((text) => response.end(`read ${text}`))
    })
    const client = await Client.connect(port)
    const incomplete = asking("/", { method: "POST", fields: ["Content-Length: 4"], content: "BO" })
    let event = upgrade(server, (_, stream, head) => ({ stream, head: head.toString() }))
    client.socket.write(incomplete)
    for (let i = 0; i < 3; i++) {
      const { head, stream } = await event
      assert.strictEqual(head, "BO")
      event = upgrade(server, (_, stream, head) => ({ stream, head: head.toString() }))
      Node.handBack(server, stream, [])
      client.socket.write(message("POST / HTTP/1.1", ["Host: a", "Content-Length: 8"], "ordinary"))
      await client.until("read ordinary")
      client.socket.write(incomplete)
    }
    await event
  })

  it("fires without a Host, with an expectation, and in HTTP/1.0, where Node would check an ordinary request", async () => {
    const { port, server } = await listen()
    for (const request of [
      message("GET / HTTP/1.1", ["Connection: Upgrade", "Upgrade: echo"]),
      asking("/", { fields: ["Expect: 100-continue"] }),
      asking("/", { fields: ["Expect: nothing"] }),
      message("GET / HTTP/1.0", ["Connection: Upgrade", "Upgrade: echo"])
    ]) {
      const event = upgrade(server, () => "upgrade")
      const client = await Client.connect(port)
      client.socket.write(request)
      assert.strictEqual(await event, "upgrade")
    }
  })

  it("frees the socket from closeAllConnections", async () => {
    const { port, server } = await listen()
    const event = upgrade(server, (_, socket) => socket)
    const client = await Client.connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    server.closeAllConnections()
    assert.isFalse(socket.destroyed)
  })
})

describe("a response", () => {
  /** A response of ours on the socket of an upgrade that is about to be ignored. */
  const ours = async (server: Http.Server, port: number, keepAlive: boolean, request = asking("/")) => {
    const event = upgrade(server, (request, socket) => {
      const response = new Http.ServerResponse(request)
      Node.prepareResponse(response, server, keepAlive)
      assert.isUndefined(Node.currentResponse(socket))
      response.assignSocket(socket)
      return { response, socket }
    })
    const client = await Client.connect(port)
    client.socket.write(request)
    return { ...(await event), client }
  }

  it("is the socket's current one from its assignment to its detachment", async () => {
    const { port, server } = await listen()
    const { response, socket } = await ours(server, port, true)
    assert.strictEqual(Node.currentResponse(socket), response)
    response.detachSocket(socket)
    assert.isUndefined(Node.currentResponse(socket))
  })

  it("of an ordinary request is the socket's current one until it is out", async () => {
    const { port, server } = await listen()
    server.on("request", (request, response) => {
      assert.strictEqual(Node.currentResponse(request.socket), request.url === "/1" ? response : first)
      if (request.url === "/1") {
        first = response
      } else {
        first!.end("first")
        response.end("second")
      }
    })
    let first: Http.ServerResponse | undefined
    const client = await Client.connect(port)
    client.socket.write(message("GET /1 HTTP/1.1", ["Host: a"]) + message("GET /2 HTTP/1.1", ["Host: a"]))
    await client.until("first")
    await client.until("second")
  })

  it.each([
    ["keep-alive", {}, true, ["Connection: keep-alive"]],
    ["another timeout", { keepAliveTimeout: 61_000 }, true, []],
    ["no timeout", { keepAliveTimeout: 0 }, true, []],
    ["close", {}, false, ["Connection: close"]]
  ] as const)("that is prepared writes what Node writes (%s)", async (_, node, keepAlive, fields) => {
    const { port, server } = await listen(node)
    server.maxRequestsPerSocket = 7
    const answer = (response: Http.ServerResponse) => {
      response.writeHead(200, { "content-type": "text/plain", "content-length": 5 })
      response.end("plain")
    }
    server.on("request", (_, response) => answer(response))
    const { client, response } = await ours(server, port, keepAlive)
    answer(response)
    const ordinary = await Client.connect(port)
    ordinary.socket.write(message("GET / HTTP/1.1", ["Host: a", ...fields]))
    assert.strictEqual(withoutDate(await client.until("plain")), withoutDate(await ordinary.until("plain")))
  })

  it("knows whether it is the last on its connection once its head is written", async () => {
    const { port, server } = await listen()
    for (const [keepAlive, headers, last] of [
      [true, {}, false],
      [false, {}, true],
      [true, { connection: "close" }, true],
      [true, { connection: "keep-alive" }, false]
    ] as const) {
      const { response } = await ours(server, port, keepAlive)
      assert.isFalse(Node.isLast(response))
      response.writeHead(200, { "content-length": "0", ...headers })
      response.end()
      assert.strictEqual(Node.isLast(response), last, JSON.stringify(headers))
    }
  })

  it("that is closed says so once", async () => {
    const { port, server } = await listen()
    const { response } = await ours(server, port, true)
    let closed = 0
    response.on("close", () => closed++)
    assert.isFalse(response.closed)
    Node.closeResponse(response)
    Node.closeResponse(response)
    assert.deepStrictEqual([closed, response.closed, response.destroyed], [1, true, true])
  })

  it("that is spent has ended for whoever asks, writes nothing, and can be taken back", async () => {
    const { port, server } = await listen()
    const { client, response, socket } = await ours(server, port, true)
    Node.setSpent(response, true)
    assert.isTrue(response.writableEnded)
    response.end()
    Node.setSpent(response, false)
    assert.isFalse(response.writableEnded)
    assert.strictEqual(socket.bytesWritten, 0)
    response.writeHead(200, { "content-length": "4" })
    response.end("sent")
    assert.match(await client.until("sent"), /^HTTP\/1\.1 200 OK\r\n/)
  })

  it("that waits for room is told when the socket has some, by the relay alone", async () => {
    const { port, server } = await listen()
    let earlier: Http.ServerResponse | undefined
    server.on("request", (_, response) => {
      earlier = response
    })
    const event = upgrade(server, (_, socket) => socket)
    const client = await Client.connect(port)
    client.socket.write(message("GET / HTTP/1.1", ["Host: a"]) + asking("/"))
    const socket = await event
    socket.on("drain", () => Node.relayDrain(socket))
    assert.strictEqual(Node.currentResponse(socket), earlier)
    assert.isFalse(earlier!.write("x".repeat(8 * 1024 * 1024)))
    await once(earlier!, "drain")
    earlier!.end("the end")
    await client.until("the end")
  })

  it("is allowed as many requests a connection as Node's", async () => {
    const { port, server } = await listen()
    server.maxRequestsPerSocket = 2
    const answer = (response: Http.ServerResponse) => {
      response.writeHead(200, { "content-length": 1 })
      response.end("x")
    }
    server.on("request", (_, response) => answer(response))
    const dropped: Array<string> = []
    server.on("dropRequest", (request) => dropped.push(request.url!))
    const seen: Array<string> = []
    for (const upgrading of [true, false]) {
      const client = await Client.connect(port)
      let socket: net.Socket | undefined
      for (let i = 0; i < 3; i++) {
        if (upgrading) {
          const event = upgrade(server, (request, stream) => {
            const response = new Http.ServerResponse(request)
            Node.prepareResponse(response, server, true)
            response.assignSocket(stream)
            if (Node.countRequest(server, stream, response)) {
              answer(response)
            }
            response.detachSocket(stream)
            return stream
          })
          if (socket === undefined) {
            client.socket.write(asking("/"))
          } else {
            // The library gives the socket back itself
            socket.unshift(Buffer.from(asking("/")))
            server.emit("connection", socket)
          }
          socket = await event
        } else {
          client.socket.write(message("GET / HTTP/1.1", ["Host: a"]))
        }
        seen.push(withoutDate(await client.until(i < 2 ? "\r\n\r\nx" : "\r\n0\r\n\r\n")))
        if (!upgrading && i === 1) {
          // Node closes the connection behind the last response, where ours leaves that to its caller
          break
        }
      }
      socket?.destroy()
    }
    assert.deepStrictEqual(seen.slice(0, 2), seen.slice(3))
    assert.match(seen[2]!, /^HTTP\/1\.1 503 Service Unavailable\r\n/)
    assert.deepStrictEqual(dropped, ["/"])
  })

  it("for nobody is a 500 where nothing was sent, and nothing otherwise", async () => {
    const { port, server } = await listen()
    const first = await ours(server, port, true)
    Node.answerForNobody(first.response)
    Node.answerForNobody(first.response)
    assert.match(await first.client.until("\r\n\r\n"), /^HTTP\/1\.1 500 Internal Server Error\r\n/)
    const second = await ours(server, port, true)
    second.response.writeHead(200, { "content-length": "4" })
    Node.answerForNobody(second.response)
    second.response.end("sent")
    assert.match(await second.client.until("sent"), /^HTTP\/1\.1 200 OK\r\n/)
  })
})

describe.each([
  ["TCP", listen, (port: number) => Client.connect(port)],
  ["TLS", listenTls, (port: number) => Client.secure(port)]
] as const)("a socket over %s", (_, listening, connect) => {
  it("is served again when it is given back, what is unread first", async () => {
    const { port, server } = await listening()
    server.on("request", (request, response) => {
      response.end(`served ${request.url}`)
    })
    const event = upgrade(server, (_, socket) => {
      Node.clearTimeouts(socket)
      socket.on("error", () => {})
      return socket
    })
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    const pieces = [Buffer.from("GET /unread HTTP/1.1\r\n"), Buffer.from("Host: a\r\n\r\nGET /half HT")]
    Node.handBack(server, socket, pieces)
    await client.until("served /unread")
    client.socket.write("TP/1.1\r\nHost: a\r\n\r\n")
    await client.until("served /half")
    client.socket.write(message("GET /later HTTP/1.1", ["Host: a"]))
    await client.until("served /later")
  })

  it("that is given back with nothing unread has the timeout of a connection between two requests", async () => {
    const { port, server } = await listening()
    server.keepAliveTimeout = 7000
    server.timeout = 50_000
    const seen: Array<number | undefined> = []
    server.on("request", (request, response) => {
      setImmediate(() => {
        seen.push(request.socket.timeout)
        response.end("served")
      })
    })
    const event = upgrade(server, (_, socket) => socket)
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    Node.handBack(server, socket, [])
    assert.strictEqual(socket.timeout, 8000)
    client.socket.write(message("GET / HTTP/1.1", ["Host: a"]))
    await client.until("served")
    assert.deepStrictEqual(seen, [50_000])
  })

  it("is read again where Node had stopped it because pipelined responses had filled it", async () => {
    const { port, server } = await listening()
    const responses: Array<Http.ServerResponse> = []
    server.on("request", (_, response) => {
      responses.push(response)
    })
    const event = upgrade(server, (_, socket) => {
      socket.on("drain", () => Node.relayDrain(socket))
      const next = once(socket, "data")
      Node.readAgain(socket)
      socket.resume()
      return { next }
    })
    const client = await connect(port)
    client.socket.pause()
    client.socket.write(message("GET /1 HTTP/1.1", ["Host: a"]))
    while (responses.length === 0) {
      await once(server, "request")
    }
    responses[0]!.end("x".repeat(16 * 1024 * 1024))
    assert.isTrue(responses[0]!.req.socket.writableNeedDrain)
    client.socket.write(message("GET /2 HTTP/1.1", ["Host: a"]) + asking("/"))
    const { next } = await event
    client.socket.resume()
    client.socket.write("ping")
    assert.strictEqual(String((await next)[0]), "ping")
  })

  it("loses its timeouts", async () => {
    const { port, server } = await listening()
    server.timeout = 50_000
    const event = upgrade(server, (_, socket) => socket)
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    assert.strictEqual(socket.timeout, 50_000)
    Node.clearTimeouts(socket)
    assert.strictEqual(socket.timeout, 0)
  })

  it("goes on in one direction after the FIN of the other", async () => {
    const { port, server } = await listening()
    const event = upgrade(server, (_, socket) => {
      Node.allowHalfOpen(socket)
      return socket
    })
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    client.socket.end()
    socket.resume()
    await once(socket, "end")
    assert.isTrue(socket.writable)
    socket.end("after the FIN")
    assert.strictEqual(await client.all(), "after the FIN")
  })

  it("tells what it holds that has not left, until the peer has taken it", async () => {
    const { port, server } = await listening()
    const event = upgrade(server, (_, socket) => socket)
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    client.socket.pause()
    const before = bytesSent(socket)
    const size = 16 * 1024 * 1024
    const written = new Promise((resolve) => socket.write(Buffer.alloc(size), resolve))
    assert.isAbove(unsent(socket), 0)
    assert.isBelow(bytesSent(socket) - before, size)
    client.socket.resume()
    await written
    assert.strictEqual(unsent(socket), 0)
    assert.isAtLeast(bytesSent(socket), size)
  })

  it("that was paused and unflowed starts with the next listener for data", async () => {
    const { port, server } = await listening()
    const event = upgrade(server, (_, socket) => {
      socket.on("data", ignore)
      socket.pause()
      socket.off("data", ignore)
      unflow(socket)
      return socket
    })
    const client = await connect(port)
    client.socket.write(asking("/"))
    const socket = await event
    client.socket.write("flows")
    assert.strictEqual(String((await once(socket, "data"))[0]), "flows")
  })
})

describe("a Duplex that is no socket", () => {
  it("tells nothing below it, and no timeouts", async () => {
    const duplex = new PassThrough()
    Node.clearTimeouts(duplex)
    assert.isUndefined(Node.currentResponse(duplex))
    duplex.write("four")
    assert.strictEqual(unsent(duplex), duplex.writableLength)
    assert.strictEqual(bytesSent(duplex), 0 - duplex.writableLength)
    Node.relayDrain(duplex)
  })
})
