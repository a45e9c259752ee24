import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { switchesIn } from "./switching.js"

describe("in a bare HttpApp", () => {
  switchesIn((handler) =>
    HttpServer.serve(
      Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
        request.url === "/echo" ? handler : Effect.succeed(HttpServerResponse.text("plain"))
      )
    )
  )
})
