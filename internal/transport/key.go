package transport

import (
	"fmt"
	"strings"
)

// maxKeyLength is how many bytes of a key a Store takes.
const maxKeyLength = 255

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
	if len(inside) != len(key)-2 {
		return key
	}
	return inside
}

// CheckLength says that a key is too long. What else can be wrong with one, the Store
// says.
func CheckLength(key string) error {
	if len(key) > maxKeyLength {
		return fmt.Errorf("it has %d bytes, more than %d", len(key), maxKeyLength)
	}
	return nil
}
