package transport

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxKeyLength is how many bytes of a key a Store takes.
const MaxKeyLength = 255

// OneKey returns the key that metadata carries, without the quotes that an HTTP client
// puts around it (a String of RFC 9651): idemhttp reads both forms as the same key, and
// so does who stands behind a gateway. It is "" where there is none.
func OneKey(values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return unquoted(values[0]), nil
	}
	return "", fmt.Errorf("it was sent %d times", len(values))
}

func unquoted(key string) string {
	inside := strings.TrimSuffix(strings.TrimPrefix(key, `"`), `"`)
	if len(inside) != len(key)-2 || strings.ContainsAny(inside, `"\`) {
		return key
	}
	return inside
}

// CheckKey says what is wrong with a key that is not empty.
func CheckKey(key string) error {
	switch {
	case len(key) > MaxKeyLength:
		return fmt.Errorf("it has %d bytes, more than %d", len(key), MaxKeyLength)
	case !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0:
		return fmt.Errorf("it is not text: it is not UTF-8, or has a NUL")
	}
	return nil
}
