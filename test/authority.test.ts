import { isIPv6 } from "node:net"
import * as FastCheck from "effect/FastCheck"
import { describe, expect, it } from "vitest"
import { parseAuthority } from "../src/internal/authority.js"

const numRuns = Number(process.env.LAWS_RUNS ?? 100)

const port = FastCheck.integer({ min: 1, max: 65535 })
const registeredName = FastCheck.array(
  FastCheck.oneof(
    FastCheck.constantFrom(..."abcxyzABCXYZ0123456789-._~!$&'()*+,;="),
    FastCheck.integer({ min: 0, max: 255 }).map((octet) => `%${octet.toString(16).padStart(2, "0")}`)
  ),
  { minLength: 1, maxLength: 30 }
).map((parts) => parts.join(""))

describe("the authority-form of CONNECT (RFC 9110 §9.3.6)", () => {
  it("a registered name and a port are read as they were sent (RFC 3986 §3.2.2)", () => {
    FastCheck.assert(
      FastCheck.property(registeredName, port, (host, port) => {
        expect(parseAuthority(`${host}:${port}`)).toEqual({ host, port })
      }),
      { numRuns }
    )
    expect(parseAuthority("Example.COM:443")).toEqual({ host: "Example.COM", port: 443 })
  })

  it("an IPv4 address and a port are read", () => {
    FastCheck.assert(
      FastCheck.property(FastCheck.ipV4(), port, (host, port) => {
        expect(parseAuthority(`${host}:${port}`)).toEqual({ host, port })
      }),
      { numRuns }
    )
  })

  it("an IPv6 address is read without its brackets", () => {
    FastCheck.assert(
      FastCheck.property(FastCheck.ipV6(), port, (host, port) => {
        expect(parseAuthority(`[${host}]:${port}`)).toEqual({ host, port })
      }),
      { numRuns }
    )
  })

  it("what stands in brackets is an IPv6 address exactly when node:net says so, zones aside", () => {
    const piece = FastCheck.constantFrom(
      "::",
      ":",
      "0",
      "1",
      "ab",
      "FFFF",
      "12345",
      "g",
      "1.2.3.4",
      "01.2.3.4",
      "256.1.1.1",
      "."
    )
    const groups = FastCheck.array(FastCheck.constantFrom("0", "f", "12", "abc", "ABCD", "", "1.2.3.4"), {
      maxLength: 10
    })
    FastCheck.assert(
      FastCheck.property(
        FastCheck.oneof(
          FastCheck.array(piece, { maxLength: 9 }).map((pieces) => pieces.join("")),
          groups.map((written) => written.join(":"))
        ),
        (address) => {
          expect(parseAuthority(`[${address}]:1`) !== undefined, address).toBe(isIPv6(address))
        }
      ),
      { numRuns: numRuns * 10 }
    )
  })

  it("every arrangement of groups around '::' is accepted exactly when it is an address (RFC 3986 §3.2.2)", () => {
    const written = (n: number) => Array.from({ length: n }, (_, i) => (i + 1).toString(16)).join(":")
    for (let head = 0; head <= 9; head++) {
      expect(parseAuthority(`[${written(head)}]:1`) !== undefined).toBe(head === 8)
      for (let tail = 0; tail <= 9; tail++) {
        for (const end of [written(tail), `${written(tail)}${tail === 0 ? "" : ":"}1.2.3.4`]) {
          const address = `${written(head)}::${end}`
          expect(parseAuthority(`[${address}]:1`) !== undefined, address).toBe(isIPv6(address))
        }
      }
    }
  })

  it("a port is decimal digits from 1 to 65535, and never missing (RFC 9110 §9.3.6)", () => {
    for (let port = 0; port <= 70_000; port++) {
      expect(parseAuthority(`a:${port}`)?.port).toBe(port >= 1 && port <= 65535 ? port : undefined)
    }
    for (const bad of [
      "",
      "+80",
      "-80",
      "0x50",
      "8e1",
      "80.0",
      " 80",
      "80 ",
      "８０",
      "٨٠",
      "http",
      "99999999999999999999"
    ]) {
      expect(parseAuthority(`example.com:${bad}`), bad).toBeUndefined()
    }
    expect(parseAuthority("example.com")).toBeUndefined()
    expect(parseAuthority("[::1]")).toBeUndefined()
    expect(parseAuthority("a:0443")).toEqual({ host: "a", port: 443 })
  })

  it("user information, a path, a query, whitespace and an empty host are refused", () => {
    for (const bad of [
      "",
      ":",
      ":80",
      "[]:80",
      "user@example.com:80",
      "user:pw@example.com:80",
      "http://example.com:80",
      "//example.com:80",
      "/:80",
      "example.com/:80",
      "example.com:80/",
      "example.com:80?",
      "example.com?:80",
      "example.com#:80",
      "example.com:80#",
      "example.com :80",
      " example.com:80",
      "example.com:80\r\n",
      "exa\tmple:80",
      "exa\0mple:80",
      "a:b:80",
      "::1:80",
      "[::1:80",
      "::1]:80",
      "[::1]80",
      "[::1]a:80",
      "a[::1]:80",
      "[[::1]]:80",
      "[fe80::1%25eth0]:80",
      "[fe80::1%eth0]:80",
      "[v1.a]:80",
      "[1.2.3.4]:80",
      "[example.com]:80",
      "%:80",
      "%4:80",
      "%4g:80",
      "a%:80",
      "a\\b:80",
      "é:80",
      "a\xff:80",
      "*",
      "/"
    ]) {
      expect(parseAuthority(bad), JSON.stringify(bad)).toBeUndefined()
    }
  })

  it("anything gives an authority that writes itself back, or nothing", () => {
    const noise = FastCheck.string({
      unit: FastCheck.oneof(
        FastCheck.constantFrom(..."a1:[].%@/? :"),
        FastCheck.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code))
      ),
      maxLength: 20
    })
    FastCheck.assert(
      FastCheck.property(
        FastCheck.oneof(
          noise,
          noise.map((host) => `${host}:80`)
        ),
        (target) => {
          const authority = parseAuthority(target)
          if (authority !== undefined) {
            const host = authority.host.includes(":") ? `[${authority.host}]` : authority.host
            expect(target.startsWith(`${host}:`)).toBe(true)
            expect(Number(target.slice(host.length + 1))).toBe(authority.port)
            expect(/[\s@/?#\0-\x1f\x7f-\uffff]/.test(target)).toBe(false)
          }
        }
      ),
      { numRuns: numRuns * 10 }
    )
  })

  it("a megabyte of anything is read in linear time", () => {
    for (const piece of [":", "::", "[", "a", "%41", "%", "1.", "0", "a:", "@"]) {
      const many = piece.repeat(1_000_000 / piece.length)
      for (const target of [many, `${many}:80`, `[${many}]:80`, `a:${many}`]) {
        expect(parseAuthority(target)?.port ?? 80).toBe(80)
      }
    }
  })
})
