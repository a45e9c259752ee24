import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { describe } from "@effect/vitest"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Upgrade, UpgradeError } from "../../src/index.js"
import { switchesIn } from "./switching.js"

const declared = HttpApi.make("api").add(
  HttpApiGroup.make("all")
    .add(HttpApiEndpoint.get("echo", "/echo").addError(UpgradeError.UpgradeError))
    .add(HttpApiEndpoint.get("plain", "/plain").addSuccess(Schema.String))
)

const undeclared = HttpApi.make("api").add(
  HttpApiGroup.make("all")
    .add(HttpApiEndpoint.get("echo", "/echo"))
    .add(HttpApiEndpoint.get("plain", "/plain").addSuccess(Schema.String))
)

describe("in an HttpApi whose endpoint declares the errors", () => {
  switchesIn((handler) =>
    HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.api(declared)),
      Layer.provide(
        HttpApiBuilder.group(declared, "all", (handlers) =>
          handlers.handleRaw("echo", () => handler).handleRaw("plain", () => HttpServerResponse.text("plain"))
        )
      )
    )
  )
})

describe("in an HttpApi whose endpoint declares no error", () => {
  switchesIn((handler) =>
    HttpApiBuilder.serve().pipe(
      Layer.provide(HttpApiBuilder.api(undeclared)),
      Layer.provide(
        HttpApiBuilder.group(undeclared, "all", (handlers) =>
          handlers
            .handleRaw("echo", () => Upgrade.orRespond(handler))
            .handleRaw("plain", () => HttpServerResponse.text("plain"))
        )
      )
    )
  )
})
