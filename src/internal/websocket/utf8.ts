/** UTF-8 of a text that arrives in pieces, judged as early as it can be (RFC 6455 §8.1). */

import { isUtf8 } from "node:buffer"

/**
 * How many bytes at the end are the beginning of a code point that may still become valid: 0 to 3. Anything else that
 * is incomplete there counts as 0, and is found invalid with what stands before it.
 */
export const incompleteTail = (bytes: Uint8Array, start: number, end: number): number => {
  for (let length = 1; length <= 3 && end - length >= start; length++) {
    const lead = bytes[end - length]!
    if (lead < 0x80) {
      return 0
    }
    if (lead >= 0xc0) {
      // RFC 3629 §4: what the second byte may be depends on the first
      const needs = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2
      if (length >= needs || lead < 0xc2 || lead > 0xf4) {
        return 0
      }
      if (length > 1) {
        const second = bytes[end - length + 1]!
        const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80
        const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf
        if (second < low || second > high) {
          return 0
        }
      }
      return length
    }
  }
  return 0
}

/** Whether what stands between `start` and `end` is valid, but for its tail; returns where that begins, or -1. */
export const validateUpTo = (bytes: Uint8Array, start: number, end: number): number => {
  const whole = end - incompleteTail(bytes, start, end)
  return whole === start || isUtf8(bytes.subarray(start, whole)) ? whole : -1
}
