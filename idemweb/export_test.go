package idemweb

// What tests of this package in another one need.
var (
	About     = about
	HandleOf  = handleOf
	NewFlight = newFlight
	TraceURL  = traceURL
)

// Paths are those of all pages.
func Paths() (paths []string) {
	for _, p := range pages {
		paths = append(paths, p.path)
	}
	return paths
}
