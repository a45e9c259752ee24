import { validateHeaderName, validateHeaderValue } from "node:http"
import * as FastCheck from "effect/FastCheck"
import { describe, expect, it } from "vitest"
import {
  isFieldName,
  isFieldValue,
  isProtocolToken,
  isToken,
  listElements,
  listIncludes,
  matches,
  parseOffers
} from "../../src/internal/http1/offers.js"

const numRuns = Number(process.env.LAWS_RUNS ?? 100)
const law = <Ts extends [unknown, ...Array<unknown>]>(
  ...args: [...{ [K in keyof Ts]: FastCheck.Arbitrary<Ts[K]> }, (...values: Ts) => void]
): void => FastCheck.assert(FastCheck.property<Ts>(...args), { numRuns })

const tchars = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
const token = FastCheck.string({ unit: FastCheck.constantFrom(...tchars), minLength: 1, maxLength: 12 })
const protocol = FastCheck.tuple(token, FastCheck.option(token, { nil: undefined })).map(([name, version]) => ({
  name,
  version,
  token: version === undefined ? name : `${name}/${version}`
}))
const whitespace = FastCheck.string({ unit: FastCheck.constantFrom(" ", "\t"), maxLength: 3 })
// bytes as Node gives them, rich in what means something
const bytes = FastCheck.string({
  unit: FastCheck.oneof(
    FastCheck.constantFrom(...'aA1 \t,,/"\\'),
    FastCheck.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code))
  ),
  maxLength: 60
})

const accepts = (check: () => void): boolean => {
  try {
    check()
    return true
  } catch {
    return false
  }
}

describe("tokens and fields", () => {
  it("a token is one or more tchar (RFC 9110 §5.6.2)", () => {
    for (let code = 0; code <= 0x2fff; code++) {
      const s = String.fromCharCode(code)
      expect(isToken(s), `0x${code.toString(16)}`).toBe(tchars.includes(s))
      expect(isToken(`a${s}`)).toBe(tchars.includes(s))
      expect(isToken(`${s}a`)).toBe(tchars.includes(s))
    }
    expect(isToken("")).toBe(false)
  })

  it("a field name is what Node writes as one (RFC 9110 §5.1)", () => {
    for (let code = 0; code <= 0x2fff; code++) {
      const name = `x${String.fromCharCode(code)}`
      expect(isFieldName(name)).toBe(accepts(() => validateHeaderName(name)))
    }
    expect(isFieldName("")).toBe(false)
    law(bytes, (name) => {
      expect(isFieldName(name)).toBe(accepts(() => validateHeaderName(name)))
    })
  })

  it("a field value is what Node writes as one: no CR, LF, NUL nor other control character (RFC 9110 §5.5)", () => {
    for (let code = 0; code <= 0x2fff; code++) {
      const value = `x${String.fromCharCode(code)}`
      expect(isFieldValue(value)).toBe(accepts(() => validateHeaderValue("x", value)))
    }
    for (const value of ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "a\x7fb", "\n", "a\n"]) {
      expect(isFieldValue(value)).toBe(false)
    }
    for (const value of ["", "a", "a b\tc", "\xe9\xff"]) {
      expect(isFieldValue(value)).toBe(true)
    }
    law(bytes, (value) => {
      expect(isFieldValue(value)).toBe(accepts(() => validateHeaderValue("x", value)))
    })
  })

  it("a protocol is a name and perhaps a version, both tokens, with nothing around the slash (RFC 9110 §7.8)", () => {
    law(protocol, ({ token }) => {
      expect(isProtocolToken(token)).toBe(true)
    })
    for (const bad of ["", "/", "a/", "/1", "a/1/2", "a /1", "a/ 1", " a", "a ", "a,b", '"a"', "a\n", "a=b/\xe9"]) {
      expect(isProtocolToken(bad), JSON.stringify(bad)).toBe(false)
    }
  })
})

describe("lists", () => {
  it("elements are found whatever whitespace and however many empty ones stand between (RFC 9110 §5.6.1)", () => {
    law(
      FastCheck.array(FastCheck.tuple(whitespace, FastCheck.oneof(token, FastCheck.constant("")), whitespace)),
      (list) => {
        const field = list.map((element) => element.join("")).join(",")
        expect(listElements(field)).toEqual(list.length === 0 ? [""] : list.map(([, element]) => element))
      }
    )
  })

  it("a comma in a quoted string does not separate, nor does a quoted quote end it (RFC 9110 §5.6.4)", () => {
    expect(listElements('a="b, c", d')).toEqual(['a="b, c"', "d"])
    expect(listElements('a="b\\", c", d')).toEqual(['a="b\\", c"', "d"])
    expect(listElements('a="b\\\\", c')).toEqual(['a="b\\\\"', "c"])
    expect(listElements("a\\, b")).toEqual(["a\\", "b"])
  })

  it("a quoted string that is never closed reaches to the end", () => {
    expect(listElements('a, "b, c')).toEqual(["a", '"b, c'])
    expect(listElements('a, "b\\')).toEqual(["a", '"b\\'])
  })

  it("only space and tab are whitespace: another separator stays and spoils the token (RFC 9110 §5.6.3)", () => {
    for (const space of ["\x0b", "\x0c", "\xa0", "\ufeff", "\r", "\n"]) {
      expect(listElements(`${space}a${space}`)).toEqual([`${space}a${space}`])
      expect(listIncludes(`${space}a${space}`, "a")).toBe(false)
      expect(parseOffers(`${space}a${space}`)).toEqual([])
    }
  })

  it("a token is in a list in any case (RFC 9110 §7.6.1)", () => {
    expect(listIncludes("keep-alive, Upgrade", "upgrade")).toBe(true)
    expect(listIncludes("UPGRADE", "upgrade")).toBe(true)
    expect(listIncludes(" ,\t,upgrade\t,", "Upgrade")).toBe(true)
    law(FastCheck.array(token, { minLength: 1 }), FastCheck.nat(), (tokens, n) => {
      const wanted = tokens[n % tokens.length]
      expect(listIncludes(tokens.join(" ,\t"), wanted.toUpperCase())).toBe(true)
      expect(listIncludes(tokens.join(","), wanted.toLowerCase())).toBe(true)
    })
  })

  it("a token is not in a list that only holds it inside of something else", () => {
    for (const field of [
      undefined,
      "",
      "upgraded",
      "x-upgrade",
      "up grade",
      "upgrade=1",
      "upgrade;q=1",
      '"upgrade"',
      'a="b, upgrade, c"',
      '"a, upgrade',
      "keep-alive upgrade"
    ]) {
      expect(listIncludes(field, "upgrade"), field).toBe(false)
    }
    expect(listIncludes('"upgrade"', '"upgrade"')).toBe(false)
    expect(listIncludes(", ,", "")).toBe(false)
  })

  it("case is folded for ASCII letters only", () => {
    expect("\u212aeep-alive".toLowerCase()).toBe("keep-alive")
    expect(listIncludes("\u212aeep-alive", "keep-alive")).toBe(false)
    expect(parseOffers("\u212aerberos")).toEqual([])
  })
})

describe("offers", () => {
  it("every protocol is read, in the client's order, as it was sent (RFC 9110 §7.8)", () => {
    law(FastCheck.array(FastCheck.tuple(whitespace, protocol, whitespace), { maxLength: 64 }), (list) => {
      const field = list.map(([before, { token }, after]) => `${before}${token}${after}`).join(",")
      expect(parseOffers(field)).toEqual(list.map(([, offer]) => offer))
    })
    expect(parseOffers("HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11")).toEqual([
      { name: "HTTP", version: "2.0", token: "HTTP/2.0" },
      { name: "SHTTP", version: "1.3", token: "SHTTP/1.3" },
      { name: "IRC", version: "6.9", token: "IRC/6.9" },
      { name: "RTA", version: "x11", token: "RTA/x11" }
    ])
  })

  it("no field and an empty field offer nothing", () => {
    expect(parseOffers(undefined)).toEqual([])
    expect(parseOffers("")).toEqual([])
    expect(parseOffers(" , ,\t,")).toEqual([])
  })

  it("what is not a protocol is skipped, and what stands around it is read", () => {
    for (const bad of ["a b", "a/", "/b", "a/b/c", '"a"', "a=b", "\xe9", "a\0", 'x="b, c"', "{}"]) {
      expect(
        parseOffers(`first, ${bad}, last`).map((offer) => offer.token),
        JSON.stringify(bad)
      ).toEqual(["first", "last"])
    }
  })

  it("any bytes give only protocols that stand in them, in their order", () => {
    law(bytes, (field) => {
      let from = 0
      for (const offer of parseOffers(field)) {
        expect(isProtocolToken(offer.token)).toBe(true)
        expect(offer.version === undefined ? offer.name : `${offer.name}/${offer.version}`).toBe(offer.token)
        from = field.indexOf(offer.token, from)
        expect(from).toBeGreaterThanOrEqual(0)
        from += offer.token.length
      }
    })
  })

  it("what stands behind the 64th element is not looked at: a field of commas costs nothing (RFC 9110 §5.6.1)", () => {
    const numbered = (n: number) => Array.from({ length: n }, (_, i) => `p${i}`).join(",")
    expect(parseOffers(numbered(64)).length).toBe(64)
    expect(parseOffers(numbered(1000)).length).toBe(64)
    expect(parseOffers(`${",".repeat(63)}a`).length).toBe(1)
    expect(parseOffers(`${",".repeat(64)}a`)).toEqual([])
    expect(parseOffers(`${"@,".repeat(64)}a`)).toEqual([])
  })

  it("a megabyte of anything is read in linear time", () => {
    for (const piece of [",", '"', '"\\', " ", "\t,", "a", "a/", 'a"', "\\"]) {
      const field = piece.repeat(1_000_000 / piece.length)
      expect(parseOffers(field).length).toBeLessThanOrEqual(64)
      expect(listIncludes(field, "upgrade")).toBe(false)
    }
  })

  it("a name matches in any case, a version only as it stands (RFC 9110 §7.8)", () => {
    law(protocol, ({ name, version }) => {
      for (const sent of [name, name.toUpperCase(), name.toLowerCase()]) {
        const [offer] = parseOffers(version === undefined ? sent : `${sent}/${version}`)
        expect(matches(offer, name, version)).toBe(true)
        expect(matches(offer, `${name}x`, version)).toBe(false)
        expect(matches(offer, name, `${version}x`)).toBe(false)
        expect(matches(offer, name, version === undefined ? "1" : undefined)).toBe(false)
      }
    })
    expect(matches(parseOffers("h2c/X")[0], "H2C", "x")).toBe(false)
  })
})
