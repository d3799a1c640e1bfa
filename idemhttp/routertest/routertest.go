// Package routertest shows, in its tests, the middleware of idemhttp with the
// standard library's mux, chi, gin and echo. It is a module of its own, so that
// the routers stay out of the requirements of idemhttp.
package routertest
