// Package bytea reads the values of bytea columns, whatever the session's settings
// are. In pgx's exec and simple protocol modes they arrive as text, in the form of
// the setting bytea_output, of which pgx reads only "hex".
package bytea

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
)

// Bytes scans a bytea in the binary form and in both text forms; null is nil.
type Bytes []byte

// ScanBytes is called by pgx with the binary form, in the connection's buffer.
func (b *Bytes) ScanBytes(v []byte) error {
	*b = nil
	if v != nil {
		*b = append(Bytes{}, v...)
	}
	return nil
}

// ScanText is called by pgx with a text form.
func (b *Bytes) ScanText(v pgtype.Text) (err error) {
	*b = nil
	if v.Valid {
		*b, err = decode(v.String)
	}
	return err
}

// decode reads the forms of chapter 8.4 of PostgreSQL's manual. The escape form has
// each backslash twice, so it never begins with "\x".
func decode(text string) ([]byte, error) {
	if digits, ok := strings.CutPrefix(text, `\x`); ok {
		return hex.DecodeString(digits)
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c != '\\':
		case strings.HasPrefix(text[i+1:], `\`):
			i++
		case i+3 < len(text) && isOctal(text[i+1], '3') && isOctal(text[i+2], '7') && isOctal(text[i+3], '7'):
			c = (text[i+1]-'0')<<6 | (text[i+2]-'0')<<3 | (text[i+3] - '0')
			i += 3
		default:
			return nil, fmt.Errorf("a bytea in the escape form has a backslash at %d that begins nothing", i)
		}
		out = append(out, c)
	}
	return out, nil
}

func isOctal(c, last byte) bool { return c >= '0' && c <= last }
