package idemweb

import (
	"encoding/base64"
	"strings"
)

// A handle is a scope and a key in a hidden field. Browsers change line ends in forms, and
// keys have whatever characters their clients have sent.
func handleOf(scope, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(scope)) + "." + base64.RawURLEncoding.EncodeToString([]byte(id))
}

func readHandle(text string) (scope, id string, ok bool) {
	first, second, ok := strings.Cut(text, ".")
	s, err := base64.RawURLEncoding.DecodeString(first)
	i, err2 := base64.RawURLEncoding.DecodeString(second)
	return string(s), string(i), ok && err == nil && err2 == nil
}
