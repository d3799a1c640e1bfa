package transport

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// Octets keep every byte in JSON: text as a string, and what is not UTF-8,
// which a JSON string cannot carry, as {"base64": "..."}.
type Octets []byte

type binaryOctets struct {
	Base64 []byte `json:"base64"`
}

func (o Octets) MarshalJSON() ([]byte, error) {
	if utf8.Valid(o) {
		return json.Marshal(string(o))
	}
	return json.Marshal(binaryOctets{o})
}

// Size is that of the JSON, in bytes, without making it. JSON for HTML has six
// bytes for each of "<>&", and for two characters that end a line in JavaScript.
func (o Octets) Size() int {
	if !utf8.Valid(o) {
		return len(`{"base64":""}`) + base64.StdEncoding.EncodedLen(len(o))
	}
	n := len(`""`) + len(o)
	for i, b := range o {
		switch {
		case b == '"', b == '\\', b == '\b', b == '\f', b == '\n', b == '\r', b == '\t':
			n++
		case b < ' ', b == '<', b == '>', b == '&':
			n += 5
		case b == 0xe2 && o[i+1] == 0x80 && o[i+2]|1 == 0xa9: // U+2028, U+2029
			n += 3
		}
	}
	return n
}

func (o *Octets) UnmarshalJSON(doc []byte) error {
	if len(doc) > 0 && doc[0] == '"' {
		var text string
		err := json.Unmarshal(doc, &text)
		*o = Octets(text)
		return err
	}
	var binary *binaryOctets
	if err := json.Unmarshal(doc, &binary); err != nil {
		return err
	}
	if binary == nil || binary.Base64 == nil {
		return errors.New("idempotency: a recorded value is neither text nor base64")
	}
	*o = binary.Base64
	return nil
}

// ToOctets is for the fields of a header, or of metadata.
func ToOctets(h map[string][]string) map[string][]Octets {
	if len(h) == 0 {
		return nil
	}
	stored := make(map[string][]Octets, len(h))
	for name, values := range h {
		stored[name] = make([]Octets, len(values))
		for i, value := range values {
			stored[name][i] = Octets(value)
		}
	}
	return stored
}

// FromOctets is the reverse of ToOctets.
func FromOctets(stored map[string][]Octets) map[string][]string {
	h := make(map[string][]string, len(stored))
	for name, values := range stored {
		h[name] = make([]string, len(values))
		for i, value := range values {
			h[name][i] = string(value)
		}
	}
	return h
}
