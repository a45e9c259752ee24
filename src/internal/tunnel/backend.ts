/**
 * One ordinary request to a backend, by `node:http` and its agents: the content of both messages streams, and a connection
 * is used again.
 *
 * @internal
 */
import * as Http from "node:http"
import * as Https from "node:https"
import type { ConnectionOptions } from "node:tls"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Field } from "./fields.js"

/** The backend did not answer: the status that the client gets, and why. */
export class BackendError {
  readonly _tag = "BackendError"
  constructor(
    readonly status: 400 | 501 | 502 | 504,
    readonly description: string
  ) {}
}

export interface Backend {
  readonly url: URL
  readonly socketPath: string | undefined
  readonly tls: ConnectionOptions
  readonly agent: Http.Agent
  readonly connectTimeout: Duration.Duration
  readonly headTimeout: Duration.Duration
  readonly idleTimeout: Duration.Duration
}

export const isSecure = (url: URL): boolean => url.protocol === "https:" || url.protocol === "wss:"

export const makeAgent = (url: URL, tls: ConnectionOptions): Http.Agent =>
  isSecure(url)
    ? new Https.Agent({ ...(tls as Https.AgentOptions), keepAlive: true })
    : new Http.Agent({ keepAlive: true })

export interface Asked {
  readonly method: string
  readonly path: string
  readonly fields: ReadonlyArray<Field>
  /** The content, which the fields frame; `undefined` where there is none. */
  readonly body: Http.IncomingMessage | undefined
}

const codeOf = (error: NodeJS.ErrnoException): string => error.code ?? error.message

const failed = (error: NodeJS.ErrnoException): BackendError => {
  const code = codeOf(error)
  return code === "ETIMEDOUT"
    ? new BackendError(504, "The backend did not answer in time (ETIMEDOUT).")
    : code.startsWith("HPE_")
      ? new BackendError(502, `The backend did not answer by HTTP (${code}).`)
      : new BackendError(502, `The backend cannot be reached, or went before it had answered (${code}).`)
}

// RFC 9110 §9.2.2: what may be sent again, should it have got lost
const idempotent = new Set(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])

/** A connection that was kept may be closed by the backend in the moment in which it is used: RFC 9112 §9.3.1. */
const mayRepeat = ({ body, method }: Asked, request: Http.ClientRequest, error: NodeJS.ErrnoException): boolean =>
  request.reusedSocket &&
  body === undefined &&
  idempotent.has(method) &&
  (error.code === "ECONNRESET" || error.code === "EPIPE")

interface Progress {
  request: Http.ClientRequest | undefined
  readonly connected: Effect.Latch
}

const send = (backend: Backend, asked: Asked, progress: Progress): Effect.Effect<Http.IncomingMessage, BackendError> =>
  Effect.async((resume) => {
    const { tls, url } = backend
    const start = (): void => {
      const request = (isSecure(url) ? Https : Http).request({
        ...(tls as Https.RequestOptions),
        host: url.hostname.replace(/^\[|\]$/g, ""),
        port: url.port === "" ? (isSecure(url) ? 443 : 80) : url.port,
        ...(backend.socketPath === undefined ? {} : { socketPath: backend.socketPath }),
        agent: backend.agent,
        method: asked.method,
        path: asked.path,
        headers: asked.fields.flat(),
        setHost: false
      })
      progress.request = request
      request.on("socket", (socket) => {
        if (socket.connecting) {
          socket.once(isSecure(url) ? "secureConnect" : "connect", () => progress.connected.unsafeOpen())
        } else {
          progress.connected.unsafeOpen()
        }
      })
      request.on("response", (response) => {
        if (response.statusCode! < 200) {
          request.destroy()
          resume(Effect.fail(unasked))
        } else {
          resume(Effect.succeed(response))
        }
      })
      request.on("upgrade", (_response, socket) => {
        socket.destroy()
        resume(Effect.fail(unasked))
      })
      request.on("error", (error) => {
        if (mayRepeat(asked, request, error)) {
          start()
        } else {
          resume(Effect.fail(failed(error)))
        }
      })
      if (asked.body === undefined) {
        request.end()
      } else {
        // The backend may refuse by the head alone. A client that goes in the middle interrupts whoever waits here
        request.flushHeaders()
        asked.body.pipe(request)
      }
    }
    try {
      start()
    } catch (error) {
      resume(Effect.fail(new BackendError(400, `The request cannot be forwarded (${codeOf(error as Error)}).`)))
    }
    return Effect.sync(() => progress.request?.destroy())
  })

const unasked = new BackendError(502, "The backend switched to another protocol, which was not asked for.")

/** Fails when nothing moves for so long: neither the request out nor an answer in. */
const watch = (progress: Progress, { connectTimeout, headTimeout }: Backend): Effect.Effect<never, BackendError> => {
  const moved = (): number => {
    const socket = progress.request?.socket
    return socket === undefined || socket === null ? 0 : socket.bytesWritten + socket.bytesRead
  }
  const loop: Effect.Effect<never, BackendError> = Effect.suspend(() => {
    const before = moved()
    return Effect.zipRight(
      Effect.sleep(headTimeout),
      Effect.suspend(() =>
        moved() === before
          ? Effect.fail(new BackendError(504, `The backend did not answer within ${Duration.format(headTimeout)}.`))
          : loop
      )
    )
  })
  return Effect.zipRight(
    Effect.timeoutFail(progress.connected.await, {
      duration: connectTimeout,
      onTimeout: () =>
        new BackendError(504, `The backend could not be connected to within ${Duration.format(connectTimeout)}.`)
    }),
    loop
  )
}

/** An answer whose content stops for so long is cut off, so that the client sees that something is missing. */
const watchBody = (response: Http.IncomingMessage, { idleTimeout }: Backend): Effect.Effect<void> => {
  const loop: Effect.Effect<void> = Effect.suspend(() => {
    const before = response.socket.bytesRead
    return Effect.zipRight(
      Effect.sleep(idleTimeout),
      Effect.suspend(() => {
        if (response.socket.bytesRead === before) {
          response.destroy(new Error(`The backend sent nothing for ${Duration.format(idleTimeout)}.`))
          return Effect.void
        }
        return loop
      })
    )
  })
  return Duration.isFinite(idleTimeout) ? loop : Effect.void
}

/** Yields the answer once its head is there. What is not over when the Scope closes is cut off. */
export const ask = (backend: Backend, asked: Asked): Effect.Effect<Http.IncomingMessage, BackendError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) => {
    const progress: Progress = { request: undefined, connected: Effect.unsafeMakeLatch(false) }
    return restore(Effect.raceFirst(send(backend, asked, progress), watch(progress, backend))).pipe(
      Effect.onError(() => Effect.sync(() => progress.request?.destroy())),
      Effect.tap((response) =>
        Effect.zipRight(
          Effect.addFinalizer(() =>
            Effect.sync(() => {
              if (response.complete) {
                // Nobody wants it, and the connection can be used again
                response.resume()
              } else {
                response.destroy()
              }
            })
          ),
          response.complete ? Effect.void : Effect.forkScoped(Effect.interruptible(watchBody(response, backend)))
        )
      )
    )
  })
