/** Copies of bytes that are somebody else's soon: the small ones share a buffer, which lives as long as the last of them. */

const SLAB = 64 * 1024

let slab = Buffer.allocUnsafeSlow(0)
let slabAt = 0

/** What lies between `start` and `end`, in memory of its own. */
export const copyOf = (bytes: Uint8Array, start: number, end: number): Buffer => {
  const size = end - start
  const source = bytes.subarray(start, end)
  if (size > SLAB / 4) {
    const copy = Buffer.allocUnsafeSlow(size)
    copy.set(source)
    return copy
  }
  if (slabAt + size > slab.length) {
    slab = Buffer.allocUnsafeSlow(SLAB)
    slabAt = 0
  }
  const at = slabAt
  slabAt += size
  slab.set(source, at)
  return slab.subarray(at, slabAt)
}
