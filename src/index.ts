/**
 * @since 0.1.0
 */
export * as Connection from "./Connection.js"
export * as Protocol from "./Protocol.js"
export * as Topic from "./Topic.js"
export * as Tunnel from "./Tunnel.js"
export * as Upgrade from "./Upgrade.js"
export * as UpgradeClient from "./UpgradeClient.js"
export * as Upgraded from "./Upgraded.js"
export * as UpgradeError from "./UpgradeError.js"
export * as UpgradeServer from "./UpgradeServer.js"
export * as WebSocket from "./WebSocket.js"
export * as WebSocketError from "./WebSocketError.js"
