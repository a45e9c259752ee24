import * as HttpLayerRouter from "@effect/platform/HttpLayerRouter"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { describe } from "@effect/vitest"
import * as Layer from "effect/Layer"
import { switchesIn } from "./switching.js"

describe("in an HttpLayerRouter", () => {
  switchesIn((handler) =>
    HttpLayerRouter.serve(
      Layer.mergeAll(
        HttpLayerRouter.add("GET", "/echo", handler),
        HttpLayerRouter.add("GET", "/plain", HttpServerResponse.text("plain"))
      ),
      { disableLogger: true, disableListenLog: true }
    )
  )
})
