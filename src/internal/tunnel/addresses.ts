/**
 * Which addresses are the public Internet's. A proxy that dials any other lends its place in the network to its clients:
 * its own machine, its neighbours, the metadata service of its cloud.
 *
 * What IANA's registries of special-purpose addresses call globally reachable is public, and nothing else: neither what
 * is a way to write or to reach another address (mapped, translated, 6to4, Teredo), nor what is not yet assigned.
 *
 * @internal
 */
import { BlockList, isIP } from "node:net"

type Subnet = readonly [network: string, prefix: number]

/** RFC 6890 and its registry; 0.0.0.0/8 reaches this machine on Linux. */
export const special4: ReadonlyArray<Subnet> = [
  ["0.0.0.0", 8], // this network, RFC 791
  ["10.0.0.0", 8], // private, RFC 1918
  ["100.64.0.0", 10], // shared, RFC 6598
  ["127.0.0.0", 8], // loopback, RFC 1122
  ["169.254.0.0", 16], // link-local, RFC 3927: metadata services are here
  ["172.16.0.0", 12], // private, RFC 1918
  ["192.0.0.0", 24], // protocol assignments, RFC 6890
  ["192.0.2.0", 24], // documentation, RFC 5737
  ["192.88.99.0", 24], // 6to4 relays, RFC 7526
  ["192.168.0.0", 16], // private, RFC 1918
  ["198.18.0.0", 15], // benchmarking, RFC 2544
  ["198.51.100.0", 24], // documentation, RFC 5737
  ["203.0.113.0", 24], // documentation, RFC 5737
  ["224.0.0.0", 4], // multicast, RFC 1112
  ["240.0.0.0", 4] // reserved, RFC 1112, and broadcast
]

/** Of IPv6 only 2000::/3 is global unicast (RFC 4291 §2.4); the first three are all that is not. */
export const special6: ReadonlyArray<Subnet> = [
  ["::", 3], // unspecified, loopback, mapped (RFC 4291), NAT64 (RFC 6052, RFC 8215), discard (RFC 6666)
  ["4000::", 2], // not assigned
  ["8000::", 1], // not assigned; unique local (RFC 4193), link-local and multicast (RFC 4291), site-local (RFC 3879)
  ["2001::", 23], // protocol assignments, RFC 2928: Teredo (RFC 4380), benchmarking (RFC 5180), ORCHID (RFC 7343)
  ["2001:db8::", 32], // documentation, RFC 3849
  ["2002::", 16], // 6to4, RFC 3056
  ["3fff::", 20] // documentation, RFC 9637
]

// One list for each family: Node compares an IPv4 address with an IPv6 subnet as if it were mapped
const listOf = (family: "ipv4" | "ipv6", subnets: ReadonlyArray<Subnet>): BlockList => {
  const list = new BlockList()
  for (const [network, prefix] of subnets) {
    list.addSubnet(network, prefix, family)
  }
  return list
}

const blocked4 = listOf("ipv4", special4)
const blocked6 = listOf("ipv6", special6)

/** Whether this is an address of the public Internet; one with a zone is not, and what is no address is not either. */
export const isPublic = (address: string): boolean => {
  switch (isIP(address)) {
    case 4:
      return !blocked4.check(address, "ipv4")
    case 6:
      return !address.includes("%") && !blocked6.check(address, "ipv6")
    default:
      return false
  }
}
