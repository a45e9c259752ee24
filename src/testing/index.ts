/** What tests of programs on effect-upgrade are made of: nothing of it is loaded by the main entry. */

export * as Arbitrary from "./Arbitrary.js"
export * as Faults from "./Faults.js"
export * as Laws from "./Laws.js"
export * as Memory from "./Memory.js"
export * as Peer from "./Peer.js"
