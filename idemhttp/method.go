package idemhttp

import (
	"net/http"
	"slices"
	"strings"
)

// The Transport and the Middleware decide with the same two functions: what the
// one repeats, the other protects.

// isSafe reports whether a method has no effect to protect (RFC 9110, section
// 9.2.1, and the registry of methods, section 16.1), or, with CONNECT, is not an
// application's. Methods are case-sensitive: "get" is a method that nobody knows.
func isSafe(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodConnect,
		"PROPFIND", "REPORT", "SEARCH", "QUERY":
		return true
	}
	return false
}

// isIdempotent is RFC 9110, section 9.2.2, for methods that are not safe.
func isIdempotent(method string) bool {
	return method == http.MethodPut || method == http.MethodDelete
}

// protects reports whether a request is executed under a key. One that carries
// a key always is, whatever its method has become on the way (a method override
// makes a DELETE of a POST): its client counts on the key, and repeats it.
func (m *Middleware) protects(r *http.Request) bool {
	switch {
	case isSafe(r.Method):
		return false
	case slices.ContainsFunc(m.cfg.Methods, func(listed string) bool { return strings.EqualFold(listed, r.Method) }):
		return true // fetch sends "patch" as it is written
	case m.cfg.Key == nil && len(r.Header.Values(m.cfg.Header)) > 0:
		return true
	}
	return m.unknownMethods && !isIdempotent(r.Method)
}
