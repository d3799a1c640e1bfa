package bytea

import (
	"bytes"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

func TestEachTextFormIsRead(t *testing.T) {
	every := make([]byte, 256)
	var escaped strings.Builder
	for i := range every {
		every[i] = byte(i)
		switch c := byte(i); {
		case c == '\\':
			escaped.WriteString(`\\`)
		case c < 0x20 || c > 0x7e:
			escaped.Write([]byte{'\\', '0' + c>>6, '0' + c>>3&7, '0' + c&7})
		default:
			escaped.WriteByte(c)
		}
	}
	for text, want := range map[string][]byte{
		"":                        {},
		`\x`:                      {},
		`\x00ff5c`:                {0, 255, '\\'},
		`\\x41`:                   []byte(`\x41`),
		`{"a":"\\n"}`:             []byte(`{"a":"\n"}`),
		escaped.String():          every,
		strings.Repeat(`\\`, 100): bytes.Repeat([]byte{'\\'}, 100),
	} {
		var got Bytes
		if err := got.ScanText(pgtype.Text{String: text, Valid: true}); err != nil || !bytes.Equal(got, want) || got == nil {
			t.Errorf("%q is read as %q, %v", text, got, err)
		}
	}
}

func TestNullIsNilAndTheBufferIsNotKept(t *testing.T) {
	got := Bytes("before")
	if err := got.ScanText(pgtype.Text{}); err != nil || got != nil {
		t.Errorf("null as text: %q, %v", got, err)
	}
	got = Bytes("before")
	if err := got.ScanBytes(nil); err != nil || got != nil {
		t.Errorf("null: %q, %v", got, err)
	}
	buffer := []byte("abc")
	if err := got.ScanBytes(buffer); err != nil {
		t.Fatal(err)
	}
	buffer[0] = 'x'
	if string(got) != "abc" {
		t.Errorf("the value changed with the buffer: %q", got)
	}
	if err := got.ScanBytes([]byte{}); err != nil || got == nil {
		t.Errorf("no bytes are %v, %v", got, err)
	}
}

func TestWhatIsNoByteaIsAnError(t *testing.T) {
	for _, text := range []string{`\x0`, `\xzz`, `\`, `a\12`, `\400`, `\08`, `\1a2`} {
		var got Bytes
		if err := got.ScanText(pgtype.Text{String: text, Valid: true}); err == nil {
			t.Errorf("%q is read as %q", text, got)
		}
	}
}
