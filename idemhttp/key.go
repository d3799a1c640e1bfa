package idemhttp

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dunglas/httpsfv"
)

// maxKeyField bounds what is parsed: the parameters of a hostile field take many
// times its size. It leaves room for a key of 255 characters, all escaped, and for
// parameters to come.
const maxKeyField = 4096

// parseKey returns the key that a request's header field carries, and "" where
// there is none.
//
// The field is an Item of RFC 9651, section 3.3, and a String (3.3.3); its
// parameters (3.1.2) are for extensions to come, and ignored. Nearly every
// client sends its key without the quotes, which no Item of a UUID can do, so
// that is taken as well, and means the same key.
func parseKey(lines []string, maxBytes int) (string, error) {
	if len(lines) == 0 {
		return "", nil
	}
	if len(lines) > 1 {
		return "", errors.New("the field was sent on more than one line")
	}
	if len(lines[0]) > maxKeyField {
		return "", fmt.Errorf("the field has more than %d bytes", maxKeyField)
	}
	item, err := httpsfv.UnmarshalItem([]string{quoted(lines[0])})
	if err != nil {
		return "", errors.New(`the field is neither a quoted string ("..." of printable ASCII) nor a bare key (letters, digits and some punctuation)`)
	}
	key, isString := item.Value.(string)
	switch {
	case !isString:
		return "", errors.New("the field is a structured value, but not a string")
	case key == "":
		return "", errors.New("the key is empty")
	case len(key) > maxBytes:
		return "", fmt.Errorf("the key has %d characters, more than %d", len(key), maxBytes)
	}
	return key, nil
}

// quoted puts a bare key in its quotes, and leaves everything else as it is.
func quoted(field string) string {
	field = strings.Trim(field, " \t")
	end := 0
	for end < len(field) && isBare(field[end]) {
		end++
	}
	if end == 0 || strings.IndexByte(":=@", field[0]) >= 0 {
		return field // of another type: ":YQ==:" are bytes, "@0" is a date
	}
	return `"` + field[:end] + `"` + field[end:]
}

// isBare reports whether c can be in a bare key: the characters of a token
// (RFC 9651, section 3.3.4), and what the ids in use have beyond it. The list
// has no space, comma, semicolon, quote or backslash.
func isBare(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~:/=@", c) >= 0
}
