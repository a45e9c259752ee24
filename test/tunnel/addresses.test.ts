import { isIPv6 } from "node:net"
import { assert, describe, it } from "@effect/vitest"
import * as FastCheck from "effect/FastCheck"
import { isPublic, special4, special6 } from "../../src/internal/tunnel/addresses.js"
import { runs } from "../support.js"

const width = { 4: 32n, 6: 128n } as const

/** An address as a number, by arithmetic of this test's own. */
const numberOf = (address: string): bigint => {
  if (!address.includes(":")) {
    return address.split(".").reduce((sum, octet) => sum * 256n + BigInt(octet), 0n)
  }
  const [head = "", tail] = address.split("::")
  const groups = (part: string) => (part === "" ? [] : part.split(":"))
  const first = groups(head)
  const last = tail === undefined ? [] : groups(tail)
  return [...first, ...Array(8 - first.length - last.length).fill("0"), ...last].reduce(
    (sum, group) => sum * 65536n + BigInt(`0x${group}`),
    0n
  )
}

const write4 = (n: bigint): string => [24n, 16n, 8n, 0n].map((shift) => (n >> shift) & 255n).join(".")

const write6 = (n: bigint): string =>
  [112n, 96n, 80n, 64n, 48n, 32n, 16n, 0n].map((shift) => ((n >> shift) & 65535n).toString(16)).join(":")

const within = (n: bigint, [network, prefix]: readonly [string, number], family: 4 | 6): boolean => {
  const shift = width[family] - BigInt(prefix)
  return n >> shift === numberOf(network) >> shift
}

const isSpecial = (n: bigint, family: 4 | 6): boolean =>
  (family === 4 ? special4 : special6).some((subnet) => within(n, subnet, family))

describe("an address", () => {
  it.each([
    // loopback, and the machine itself
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "::1",
    "::",
    // private, shared, link-local
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "169.254.0.1",
    "169.254.169.254",
    "fc00::1",
    "fd00:ec2::254",
    "fdff:ffff::1",
    "fe80::1",
    "febf::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    // multicast, broadcast, reserved
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "ffff::1",
    "4000::1",
    "8000::1",
    "1fff::1",
    // protocol assignments, benchmarking, documentation, discard
    "192.0.0.8",
    "192.0.0.170",
    "192.0.2.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "2001:2::1",
    "2001:db8::1",
    "2001:10::1",
    "2001:20::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "100::1",
    "5f00::1",
    // ways to another address: mapped, compatible, translated, 6to4, Teredo, with whatever in them
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:808:808",
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "192.88.99.1",
    // no address
    "",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "8.8.8.8:53",
    "[2606:4700::1111]",
    "8.8.8.8 "
  ])("is not of the public Internet: %s", (address) => {
    assert.isFalse(isPublic(address))
  })

  it.each([
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2001:db7:ffff::1",
    "2001:db9::1",
    "2003::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
    "3ffe::1",
    "3fff:1000::1"
  ])("is of the public Internet: %s", (address) => {
    assert.isTrue(isPublic(address))
  })

  it("is judged right at both edges of every special range, and beside them", () => {
    for (const [family, subnets, write] of [
      [4, special4, write4],
      [6, special6, write6]
    ] as const) {
      for (const [network, prefix] of subnets) {
        const size = 1n << (width[family] - BigInt(prefix))
        const first = numberOf(network)
        for (const n of [first - 1n, first, first + size - 1n, first + size]) {
          if (n >= 0n && n < 1n << width[family]) {
            assert.strictEqual(isPublic(write(n)), !isSpecial(n, family), write(n))
          }
        }
      }
    }
  })

  it("is judged right whatever it is, and however it is written", () => {
    FastCheck.assert(
      FastCheck.property(FastCheck.ipV4(), (address) => isPublic(address) === !isSpecial(numberOf(address), 4)),
      { numRuns: runs(2000) }
    )
    FastCheck.assert(
      FastCheck.property(
        FastCheck.oneof(
          FastCheck.bigInt({ min: 0n, max: (1n << 128n) - 1n }),
          // around what is global unicast, where all the exceptions are
          FastCheck.bigInt({ min: 0n, max: (1n << 112n) - 1n }).map((n) => n + (0x2001n << 112n))
        ),
        FastCheck.boolean(),
        (n, upper) => {
          const address = upper ? write6(n).toUpperCase() : write6(n)
          return isIPv6(address) && isPublic(address) === !isSpecial(n, 6)
        }
      ),
      { numRuns: runs(2000) }
    )
  })

  it("in IPv6 that stands for an IPv4 address is never public, whatever that one is", () => {
    FastCheck.assert(
      FastCheck.property(
        FastCheck.ipV4(),
        FastCheck.constantFrom("::", "::ffff:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::"),
        (address, prefix) => !isPublic(`${prefix}${address}`)
      ),
      { numRuns: runs(1000) }
    )
  })
})
