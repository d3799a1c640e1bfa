package keytable_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// In these client encodings, the last byte of a character in UTF-8 can be the first half
// of one that takes the backslash behind it for the other half.
func TestNoTextGetsOutOfItsLiteralWhateverTheClientEncodingIs(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, pgtest.MaxConns(1))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, encoding := range []string{"UTF8", "SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "UHC", "GB18030", "JOHAB"} {
		for _, conforming := range []string{"on", "off"} {
			settings := fmt.Sprintf("set backslash_quote = on; set standard_conforming_strings = %s; set client_encoding = %s", conforming, encoding)
			if _, err := conn.Conn().PgConn().Exec(t.Context(), settings).ReadAll(); err != nil {
				t.Fatal(err)
			}
			read := 0
			for r := rune(0xc0); r < 0x100; r++ {
				for _, end := range []string{`\`, `\'`, `'`} {
					text := string(r) + end + ` || pg_backend_pid() -- `
					results, err := conn.Conn().PgConn().Exec(t.Context(), "select "+keytable.Literal(text)).ReadAll()
					if err != nil { // no text in this encoding
						continue
					}
					read++
					got := string(results[0].Rows[0][0])
					if !strings.HasSuffix(got, ` || pg_backend_pid() -- `) || encoding == "UTF8" && got != text {
						t.Errorf("%s: %s is read as %q", encoding, keytable.Literal(text), got)
					}
				}
			}
			if read == 0 {
				t.Errorf("%s: no text was read", encoding)
			}
		}
	}
}
