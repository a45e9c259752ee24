import { once } from "node:events"
import * as http from "node:http"
import * as net from "node:net"
import type { Duplex } from "node:stream"
import { afterEach, assert, describe, it } from "@effect/vitest"
import * as FastCheck from "effect/FastCheck"
import { type MemorySocket, pair } from "../../src/internal/memory.js"

type End = net.Socket | MemorySocket

const open: Array<End> = []

afterEach(() => {
  for (const end of open.splice(0)) {
    end.destroy()
  }
})

const memory = async (): Promise<readonly [End, End]> => pair()

const tcp = async (): Promise<readonly [End, End]> => {
  const server = net.createServer({ allowHalfOpen: true })
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const client = net.connect({ port: (server.address() as net.AddressInfo).port, allowHalfOpen: true })
  const [accepted] = (await once(server, "connection")) as [net.Socket]
  if (client.connecting) {
    await once(client, "connect")
  }
  server.close()
  return [accepted, client]
}

const ends = async (make: () => Promise<readonly [End, End]>): Promise<readonly [End, End]> => {
  const both = await make()
  open.push(...both)
  return both
}

const memoryEnds = (options?: Parameters<typeof pair>[0]) => {
  const both = pair(options)
  open.push(...both)
  return both
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve))

/** Everything that an end emits from now on, until 'close'. */
const trace = (end: End): { readonly events: Array<string>; readonly closed: Promise<unknown> } => {
  const events: Array<string> = []
  end.on("data", (bytes: Buffer) => events.push(`data ${bytes.toString("latin1")}`))
  end.on("end", () => events.push("end"))
  end.on("error", (error: NodeJS.ErrnoException) => events.push(`error ${error.message}`))
  const closed = new Promise((resolve) =>
    end.on("close", (hadError?: boolean) => {
      events.push(`close ${hadError}`)
      resolve(undefined)
    })
  )
  return { events, closed }
}

const write = (end: End, bytes: Uint8Array | string): Promise<NodeJS.ErrnoException | undefined> =>
  new Promise((resolve) => end.write(bytes, (error) => resolve(error ?? undefined)))

const text = async (end: End, length: number): Promise<string> => {
  let seen = ""
  while (seen.length < length) {
    const [bytes] = (await once(end, "data")) as [Buffer]
    seen += bytes.toString("latin1")
  }
  return seen
}

// What holds of a connection in memory holds of one over TCP: the same statements are made of both.
describe.each([
  ["in memory", memory],
  ["over TCP", tcp]
] as const)("a connection %s", (_, make) => {
  it("is open, connected and has the addresses of both ends", async () => {
    const [server, client] = await ends(make)
    for (const end of [server, client]) {
      assert.isFalse(end.connecting)
      assert.isFalse(end.pending)
      assert.strictEqual(end.readyState, "open")
      assert.strictEqual(end.remoteFamily, "IPv4")
      assert.strictEqual(end.localFamily, "IPv4")
      assert.deepStrictEqual(end.address(), { address: end.localAddress, family: "IPv4", port: end.localPort })
    }
    assert.strictEqual(server.remotePort, client.localPort)
    assert.strictEqual(client.remotePort, server.localPort)
    assert.strictEqual(server.remoteAddress, client.localAddress)
  })

  it("carries bytes both ways and counts them", async () => {
    const [server, client] = await ends(make)
    client.write("ping")
    assert.strictEqual(await text(server, 4), "ping")
    server.write("pong!")
    assert.strictEqual(await text(client, 5), "pong!")
    assert.deepStrictEqual([client.bytesWritten, client.bytesRead], [4, 5])
    assert.deepStrictEqual([server.bytesWritten, server.bytesRead], [5, 4])
  })

  it("delivers nothing within the call that writes it", async () => {
    const [server, client] = await ends(make)
    const { events } = trace(server)
    client.write("x")
    await Promise.resolve()
    assert.deepStrictEqual(events, [])
    await once(server, "data")
  })

  it("has a FIN behind the bytes, and goes on in the other direction", async () => {
    const [server, client] = await ends(make)
    const seen = trace(server)
    client.end("bye")
    await once(server, "end")
    assert.deepStrictEqual(seen.events, ["data bye", "end"])
    assert.strictEqual(server.readyState, "writeOnly")
    const heard = text(client, 5)
    server.write("still")
    assert.strictEqual(await heard, "still")
    assert.strictEqual(client.readyState, "readOnly")
    const other = trace(client)
    server.end()
    await Promise.all([seen.closed, other.closed])
    assert.deepStrictEqual(seen.events, ["data bye", "end", "close false"])
    assert.deepStrictEqual(other.events, ["end", "close false"])
    assert.strictEqual(server.readyState, "closed")
    assert.isTrue(server.pending)
  })

  it("emits 'end' on an end that nobody reads and that has nothing to be read", async () => {
    const [server, client] = await ends(make)
    client.end()
    await once(server, "end")
  })

  it("delivers what was written before a destroy, and then a FIN", async () => {
    const [server, client] = await ends(make)
    const seen = trace(client)
    server.write("HTTP/1.1 400 ")
    server.write("Bad Request\r\n\r\n")
    server.destroy()
    await once(client, "end")
    assert.strictEqual(seen.events.join("").replaceAll("data ", ""), "HTTP/1.1 400 Bad Request\r\n\r\nend")
  })

  it("sends a FIN when an end is destroyed with input that it had taken and nobody read", async () => {
    const [server, client] = await ends(make)
    client.write("0123456789")
    await once(server, "readable")
    const seen = trace(client)
    server.destroy()
    await once(client, "end")
    assert.deepStrictEqual(seen.events, ["end"])
  })

  it("tells 'close' whether there was an error", async () => {
    const [server, client] = await ends(make)
    const failed = trace(server)
    server.destroy(new Error("boom"))
    await failed.closed
    assert.deepStrictEqual(failed.events, ["error boom", "close true"])
    const ended = trace(client)
    client.destroy()
    await ended.closed
    assert.strictEqual(ended.events.at(-1), "close false")
  })

  it("shows a reset as ECONNRESET to who reads", async () => {
    const [server, client] = await ends(make)
    const seen = trace(server)
    const own = trace(client)
    client.resetAndDestroy()
    await Promise.all([seen.closed, own.closed])
    assert.deepStrictEqual(seen.events, ["error read ECONNRESET", "close true"])
    assert.deepStrictEqual(own.events, ["close false"])
  })

  it("gives the reset its code, number and system call", async () => {
    const [server, client] = await ends(make)
    client.resetAndDestroy()
    const [error] = (await once(server, "error")) as [NodeJS.ErrnoException]
    assert.deepInclude(error, { code: "ECONNRESET", syscall: "read" })
    assert.isBelow(error.errno!, 0)
  })

  it("fails writes with EPIPE after the peer has closed, but for the first", async () => {
    const [server, client] = await ends(make)
    client.destroy()
    await once(server, "end")
    const seen = trace(server)
    assert.isUndefined(await write(server, "one"))
    let error: NodeJS.ErrnoException | undefined
    while (error === undefined) {
      await turn()
      error = await write(server, "more")
    }
    assert.deepInclude(error, { code: "EPIPE", syscall: "write" })
    await seen.closed
    assert.deepStrictEqual(seen.events, ["error write EPIPE", "close true"])
  })

  it("refuses writes after it was destroyed", async () => {
    const [server] = await ends(make)
    server.destroy()
    assert.strictEqual((await write(server, "x"))?.code, "ERR_STREAM_DESTROYED")
  })

  it("stops the writer while the other end does not read, and takes all when it reads again", async () => {
    const [server, client] = await ends(make)
    const block = Buffer.alloc(64 * 1024, "x")
    let blocks = 0
    while (client.write(block) || client.writableLength === 0) {
      blocks++
      await turn()
    }
    blocks++
    let seen = 0
    server.on("data", (bytes) => {
      seen += bytes.length
    })
    await once(client, "drain")
    client.end()
    await once(server, "end")
    assert.strictEqual(seen, blocks * block.length)
  })

  it("finishes what was written before destroySoon destroys", async () => {
    const [server, client] = await ends(make)
    const seen = trace(client)
    server.write("last")
    server.write(" words")
    server.destroySoon()
    await once(client, "end")
    assert.strictEqual(seen.events.join("").replaceAll("data ", ""), "last wordsend")
    if (!server.closed) {
      await once(server, "close")
    }
    server.destroySoon()
  })

  it("emits 'timeout' when idle, and no more once the timeout is 0", async () => {
    const [server] = await ends(make)
    const never = () => assert.fail("the timeout was taken away")
    assert.strictEqual(server.setTimeout(1, never), server)
    assert.strictEqual(server.timeout, 1)
    server.setTimeout(0, never)
    assert.strictEqual(server.listenerCount("timeout"), 0)
    await new Promise<void>((resolve) => server.setTimeout(1, resolve))
    assert.isFalse(server.destroyed)
    server.destroy()
    assert.strictEqual(server.setTimeout(1, never), server)
    assert.strictEqual(server.listenerCount("timeout"), 0)
  })

  it("has the methods that set socket options", async () => {
    const [server] = await ends(make)
    assert.strictEqual(server.setNoDelay(true), server)
    assert.strictEqual(server.setKeepAlive(true, 1000), server)
    assert.strictEqual(server.ref(), server)
    assert.strictEqual(server.unref().ref(), server)
  })

  it("does not see a FIN while it is full and unread", async () => {
    const [server, client] = await ends(make)
    let ended = false
    server.on("end", () => {
      ended = true
    })
    client.end(Buffer.alloc(128 * 1024))
    while (server.readableLength < server.readableHighWaterMark) {
      await turn()
    }
    for (let i = 0; i < 10; i++) {
      await turn()
    }
    assert.isFalse(ended)
    server.resume()
    await once(server, "end")
  })
})

describe("a pair", () => {
  it("delivers each write as one 'data', cut at 64 KiB, whatever the sizes", async () => {
    await FastCheck.assert(
      FastCheck.asyncProperty(
        FastCheck.array(FastCheck.integer({ min: 1, max: 200_000 }), { maxLength: 8 }),
        FastCheck.boolean(),
        async (sizes, atOnce) => {
          const [server, client] = memoryEnds()
          const seen: Array<number> = []
          server.on("data", (bytes) => seen.push(bytes.length))
          for (const size of sizes) {
            const written = write(client, Buffer.alloc(size))
            if (!atOnce) {
              await written
            }
          }
          client.end()
          await once(server, "end")
          const expected = sizes.flatMap((size) =>
            Array.from({ length: Math.ceil(size / 65536) }, (_, i) => Math.min(65536, size - i * 65536))
          )
          assert.deepStrictEqual(seen, expected)
        }
      ),
      { numRuns: 50 }
    )
  })

  it("holds the callback of a write until the other end has read it", async () => {
    const [server, client] = memoryEnds({ highWaterMark: 8 })
    await write(client, "12345678")
    let called = false
    client.write("9", () => {
      called = true
    })
    for (let i = 0; i < 10; i++) {
      await turn()
    }
    assert.isFalse(called)
    assert.strictEqual(server.readableLength, 8)
    server.resume()
    while (!called) {
      await turn()
    }
  })

  it("copies what is written", async () => {
    const [server, client] = memoryEnds()
    const bytes = Buffer.from("before")
    client.write(bytes)
    const heard = text(server, 6)
    bytes.write("after!")
    assert.strictEqual(await heard, "before")
    assert.strictEqual(bytes.toString(), "after!")
  })

  it("runs next ticks and promise jobs between two deliveries", async () => {
    const [server, client] = memoryEnds()
    const order: Array<string> = []
    server.on("data", (bytes) => {
      order.push(bytes.toString())
      process.nextTick(() => order.push("tick"))
      queueMicrotask(() => order.push("job"))
    })
    client.write("a")
    client.end("b")
    await once(server, "end")
    assert.deepStrictEqual(order, ["a", "tick", "job", "b", "tick", "job"])
  })

  it("resets when an end is destroyed with input on its way, and drops what it had sent", async () => {
    const [server, client] = memoryEnds()
    const seen = trace(client)
    client.write("unread")
    server.write("lost")
    server.destroy()
    await seen.closed
    assert.deepStrictEqual(seen.events, ["error read ECONNRESET", "close true"])
  })

  it("resets when an end is destroyed with more output than a kernel takes", async () => {
    const [server, client] = memoryEnds()
    const seen = trace(client)
    server.write(Buffer.alloc(60_000))
    server.write(Buffer.alloc(60_000))
    server.destroy()
    await seen.closed
    assert.deepStrictEqual(seen.events, ["error read ECONNRESET", "close true"])
  })

  it("does not send what is corked when it is destroyed", async () => {
    const [server, client] = memoryEnds()
    const seen = trace(client)
    server.cork()
    server.write("corked")
    server.destroy()
    await once(client, "end")
    assert.deepStrictEqual(seen.events, ["end"])
  })

  it("drops what is unread by a reset, but not what was taken before", async () => {
    const [server, client] = memoryEnds()
    const seen = trace(server)
    await write(client, "taken")
    client.write("dropped")
    client.resetAndDestroy()
    await seen.closed
    assert.deepStrictEqual(seen.events, ["data taken", "error read ECONNRESET", "close true"])
  })

  it("hides a reset from an end that does not read, until it reads or writes", async () => {
    for (const notice of ["read", "write"] as const) {
      const [server, client] = memoryEnds({ highWaterMark: 8 })
      await write(client, "12345678")
      const failed = once(server, "error") as Promise<[NodeJS.ErrnoException]>
      client.resetAndDestroy()
      for (let i = 0; i < 10; i++) {
        await turn()
      }
      assert.isFalse(server.destroyed)
      if (notice === "read") {
        server.resume()
      } else {
        server.write("x")
      }
      const [error] = await failed
      assert.deepInclude(error, { syscall: notice, code: notice === "read" ? "ECONNRESET" : "EPIPE" })
    }
  })

  it("fails a write that waits when the peer resets, though nobody reads", async () => {
    const [server, client] = memoryEnds({ highWaterMark: 8 })
    await write(client, "12345678")
    await write(server, "12345678")
    const waiting = write(server, "x")
    server.on("error", () => {})
    client.resetAndDestroy()
    assert.deepInclude(await waiting, { code: "ECONNRESET", syscall: "write" })
  })

  it("calls back a write that waits when its own end is destroyed", async () => {
    const [server] = memoryEnds({ highWaterMark: 8 })
    await write(server, "12345678")
    const waiting = write(server, "x")
    server.on("error", () => {})
    server.destroy(new Error("boom"))
    assert.strictEqual((await waiting)?.message, "boom")
  })

  it("has nothing to deliver for an empty write", async () => {
    const [server, client] = memoryEnds()
    const seen = trace(server)
    assert.isUndefined(await write(client, ""))
    client.end()
    await once(server, "end")
    assert.deepStrictEqual(seen.events, ["end"])
  })

  it("goes on delivering after a listener threw", async () => {
    const [server, client] = memoryEnds()
    const thrown = new Promise((resolve) => {
      const others = process.listeners("uncaughtException")
      process.removeAllListeners("uncaughtException")
      process.once("uncaughtException", (error) => {
        others.forEach((listener) => process.on("uncaughtException", listener))
        resolve(error)
      })
    })
    const boom = new Error("boom")
    server.once("data", () => {
      throw boom
    })
    client.write("a")
    assert.strictEqual(await thrown, boom)
    const heard = text(server, 1)
    client.write("b")
    assert.strictEqual(await heard, "b")
  })

  it("has addresses made to order, of both families, or none", () => {
    const [server, client] = memoryEnds({
      server: { address: "::1", port: 443 },
      client: { address: "192.0.2.7", port: 5 },
      encrypted: true
    })
    assert.deepInclude(server, {
      remoteAddress: "192.0.2.7",
      remotePort: 5,
      remoteFamily: "IPv4",
      localAddress: "::1",
      localPort: 443,
      localFamily: "IPv6",
      encrypted: true
    })
    assert.notProperty(client, "encrypted")
    const [unix] = memoryEnds({ unix: true })
    assert.isUndefined(unix.remoteAddress)
    assert.deepStrictEqual(unix.address(), {})
    assert.notStrictEqual(memoryEnds()[1].localPort, memoryEnds()[1].localPort)
  })
})

describe("node:http over a pair", () => {
  const warnings: Array<Error> = []
  process.on("warning", (warning) => warnings.push(warning))

  const serve = (listener?: http.RequestListener) => {
    const server = http.createServer(listener)
    return {
      server,
      connect: (options?: Parameters<typeof pair>[0]) => {
        const [end, client] = memoryEnds(options)
        server.emit("connection", end)
        return [end, client] as const
      }
    }
  }

  const echoPath: http.RequestListener = (request, response) => {
    response.sendDate = false
    request.resume().on("end", () => response.end(request.url))
  }

  const until = async (client: Duplex, pattern: string): Promise<string> => {
    let seen = ""
    while (!seen.includes(pattern)) {
      const [bytes] = (await once(client, "data")) as [Buffer]
      seen += bytes.toString("latin1")
    }
    return seen
  }

  const listeners = (socket: Duplex) =>
    Object.fromEntries(socket.eventNames().map((name) => [name, socket.listenerCount(name)]))

  it("serves many requests on one connection without a leak of listeners", async () => {
    const { connect } = serve(echoPath)
    const [end, client] = connect()
    let before: unknown
    for (let i = 0; i < 100; i++) {
      client.write(`POST /${i}x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc`)
      const response = await until(client, `/${i}x`)
      assert.match(response, /^HTTP\/1.1 200 OK\r\n/)
      await turn()
      if (i === 10) {
        before = listeners(end)
      }
    }
    assert.deepStrictEqual(listeners(end), before)
    await turn()
    assert.deepStrictEqual(warnings, [])
  })

  it("answers pipelined requests in order, however they are split", async () => {
    const { connect } = serve(echoPath)
    const requests = Array.from({ length: 5 }, (_, i) => `GET /${i} HTTP/1.1\r\nHost: a\r\n\r\n`).join("")
    for (let size = 1; size <= requests.length; size += 7) {
      const [, client] = connect()
      const seen = until(client, "/4")
      for (let i = 0; i < requests.length; i += size) {
        client.write(requests.slice(i, i + size))
      }
      const answer = await seen
      assert.deepStrictEqual(answer.match(/\/\d$/gm)?.length ?? 0, 1)
      assert.deepStrictEqual(
        [...answer.matchAll(/\r\n\r\n(\/\d)/g)].map((match) => match[1]),
        ["/0", "/1", "/2", "/3", "/4"]
      )
    }
  })

  it.each([
    ["upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"],
    ["connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"]
  ])("emits '%s' with the early bytes and a socket without Node's listeners", async (event, head) => {
    const { connect, server } = serve(echoPath)
    const [end, client] = connect()
    client.write("GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(client, "/first")
    const switched = once(server, event) as Promise<[http.IncomingMessage, MemorySocket, Buffer]>
    client.write(`${head}early`)
    const [, socket, early] = await switched
    assert.strictEqual(socket, end)
    assert.strictEqual(early.toString(), "early")
    for (const name of ["data", "error", "drain", "timeout", "pause", "resume", "close"]) {
      assert.strictEqual(socket.listenerCount(name), 0, name)
    }
    socket.on("data", (bytes) => socket.write(bytes)).on("end", () => socket.end())
    const ended = once(client, "end")
    const heard = text(client, 10)
    client.end("0123456789")
    assert.strictEqual(await heard, "0123456789")
    await ended
    if (!socket.closed) {
      await once(socket, "close")
    }
    assert.deepStrictEqual([socket.errored, client.errored], [null, null])
  })

  it("can be given back to the server after an upgrade, many times, without a leak of listeners", async () => {
    const { connect, server } = serve(echoPath)
    server.on("upgrade", (_request, socket: Duplex, early: Buffer) => {
      socket.unshift(early)
      server.emit("connection", socket)
    })
    const [end, client] = connect()
    for (let i = 0; i < 20; i++) {
      client.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
      client.write(`GET /${i}x HTTP/1.1\r\nHost: a\r\n\r\n`)
      await until(client, `/${i}x`)
    }
    assert.isAtMost(end.listenerCount("pause") + end.listenerCount("resume"), 2)
    await turn()
    assert.deepStrictEqual(warnings, [])
  })

  it("answers what is not HTTP with 400, and closes", async () => {
    const { connect } = serve(echoPath)
    const [end, client] = connect()
    const seen = trace(client)
    client.write("\0garbage")
    await once(client, "end")
    assert.deepStrictEqual(seen.events, ["data HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "end"])
    assert.isTrue(end.destroyed)
  })

  it("closes the connection behind a response that says so, when the client has all of it", async () => {
    const body = "x".repeat(300_000)
    const { connect } = serve((_request, response) => response.end(body))
    const [, client] = connect()
    const seen = trace(client)
    client.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await once(client, "end")
    assert.isTrue(seen.events.join("").replaceAll("data ", "").endsWith(`\r\n\r\n${body}end`))
  })

  it("stops a response that nobody reads, and the requests behind it", async () => {
    let written = 0
    const block = Buffer.alloc(16 * 1024)
    const { connect } = serve((_request, response) => {
      const more = () => {
        while (written < 1 << 22) {
          written += block.length
          if (!response.write(block)) {
            response.once("drain", more)
            return
          }
        }
        response.end()
      }
      more()
    })
    const [, client] = connect()
    client.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    let last = -1
    while (last !== written || written === 0) {
      last = written
      for (let i = 0; i < 20; i++) {
        await turn()
      }
    }
    assert.isBelow(written, 256 * 1024)
    client.resume()
    await once(client, "end")
    assert.strictEqual(written, 1 << 22)
  })

  it("tells a handler that its client is gone", async () => {
    const { connect, server } = serve()
    const [, client] = connect()
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    const [request] = (await once(server, "request")) as [http.IncomingMessage]
    client.resetAndDestroy()
    const [error] = (await once(request, "error")) as [NodeJS.ErrnoException]
    assert.strictEqual(error.message, "aborted")
    assert.isTrue(request.socket.destroyed)
  })

  it("serves Node's own client", async () => {
    const { connect } = serve((request, response) => {
      assert.strictEqual(request.socket.remoteAddress, "192.0.2.1")
      request.pipe(response)
    })
    const [, client] = connect({ client: { address: "192.0.2.1", port: 1 } })
    const request = http.request({ method: "POST", createConnection: () => client as unknown as net.Socket })
    const body = Buffer.alloc(200_000, "b")
    request.end(body)
    const [response] = (await once(request, "response")) as [http.IncomingMessage]
    const pieces: Array<Buffer> = []
    for await (const piece of response) {
      pieces.push(piece)
    }
    assert.isTrue(Buffer.concat(pieces).equals(body))
  })
})
