import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { describe } from "@effect/vitest"
import { switchesIn } from "./switching.js"

describe("in an HttpRouter", () => {
  switchesIn((handler) =>
    HttpRouter.empty.pipe(
      HttpRouter.get("/echo", handler),
      HttpRouter.get("/plain", HttpServerResponse.text("plain")),
      HttpServer.serve()
    )
  )
})
