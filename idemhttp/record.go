package idemhttp

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"unicode/utf8"
)

// A record is a response as it is stored: the value of [idempotency.Do]. People
// read it with the command "idempotency get", so text is stored as text.
type record struct {
	Status  int                 `json:"status"`
	Header  map[string][]octets `json:"header,omitempty"`
	Body    octets              `json:"body,omitempty"`
	Trailer map[string][]octets `json:"trailer,omitempty"`

	// What the handler did to the header of outer middleware: the values that it
	// added to a field, and the fields that it deleted.
	Added   map[string][]octets `json:"added,omitempty"`
	Deleted []string            `json:"deleted,omitempty"`

	// Omitted: the response was too large to be recorded whole.
	Omitted bool `json:"omitted,omitempty"`
}

// errNotRecord says nothing of what is stored, as errors of encoding/json do: it
// is reported, and the result can be a secret.
var errNotRecord = errors.New("idemhttp: not a recorded response")

// UnmarshalJSON refuses what is no response, such as the result of a call of
// Do under the same key.
func (r *record) UnmarshalJSON(doc []byte) error {
	type plain record
	if json.Unmarshal(doc, (*plain)(r)) != nil || r.Status < 200 || r.Status > 999 {
		return errNotRecord
	}
	return nil
}

// Octets keep every byte in JSON: text as a string, and what is not UTF-8,
// which a JSON string cannot carry, as {"base64": "..."}.
type octets []byte

type binaryOctets struct {
	Base64 []byte `json:"base64"`
}

func (o octets) MarshalJSON() ([]byte, error) {
	if utf8.Valid(o) {
		return json.Marshal(string(o))
	}
	return json.Marshal(binaryOctets{o})
}

// size is that of the JSON, in bytes, without making it. JSON for HTML has six
// bytes for each of "<>&", and for two characters that end a line in JavaScript.
func (o octets) size() int {
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

func (o *octets) UnmarshalJSON(doc []byte) error {
	if len(doc) > 0 && doc[0] == '"' {
		var text string
		err := json.Unmarshal(doc, &text)
		*o = octets(text)
		return err
	}
	var binary *binaryOctets
	if err := json.Unmarshal(doc, &binary); err != nil {
		return err
	}
	if binary == nil || binary.Base64 == nil {
		return errors.New("idemhttp: a recorded value is neither text nor base64")
	}
	*o = binary.Base64
	return nil
}

func toOctets(h http.Header) map[string][]octets {
	if len(h) == 0 {
		return nil
	}
	stored := make(map[string][]octets, len(h))
	for name, values := range h {
		stored[name] = make([]octets, len(values))
		for i, value := range values {
			stored[name][i] = octets(value)
		}
	}
	return stored
}

func toHeader(stored map[string][]octets) http.Header {
	h := make(http.Header, len(stored))
	for name, values := range stored {
		h[name] = make([]string, len(values))
		for i, value := range values {
			h[name][i] = string(value)
		}
	}
	return h
}

// minRecord is what onlyStatus takes: {"status":200,"omitted":true}.
const minRecord = 29

// fitting returns as much of the record as has room in maxBytes: all of it, or
// all but the body and what describes it, or the status and the place of what
// was created, or the status. To store less is better than to store nothing:
// the handler must not run again because it had much to say.
//
// What is too large as it stands is not made JSON first: that takes many times
// its size.
func (r record) fitting(maxBytes int) (record, error) {
	for _, less := range []func(record) record{whole, withoutBody, onlyLocation, onlyStatus} {
		small := less(r)
		if small.size() > maxBytes {
			continue
		}
		stored, err := json.Marshal(small)
		if err != nil || len(stored) <= maxBytes {
			return small, err
		}
	}
	return onlyStatus(r), nil
}

// size is in bytes, and never more than that of the JSON.
func (r record) size() int {
	n := r.Body.size() - len(`""`) // an empty one is left out
	for _, fields := range []map[string][]octets{r.Header, r.Added, r.Trailer} {
		for name, values := range fields {
			n += len(name)
			for _, value := range values {
				n += value.size()
			}
		}
	}
	for _, name := range r.Deleted {
		n += len(name) + len(`""`)
	}
	return n
}

func whole(r record) record { return r }

func withoutBody(r record) record {
	return record{
		Status: r.Status, Header: notOfBody(r.Header), Added: notOfBody(r.Added), Deleted: r.Deleted, Omitted: true,
	}
}

func notOfBody(fields map[string][]octets) map[string][]octets {
	kept := maps.Clone(fields)
	maps.DeleteFunc(kept, func(name string, _ []octets) bool { return describesBody(name) })
	return kept
}

func onlyLocation(r record) record {
	small := onlyStatus(r)
	if location, ok := r.Header["Location"]; ok {
		small.Header = map[string][]octets{"Location": location}
	}
	return small
}

func onlyStatus(r record) record {
	return record{Status: r.Status, Omitted: true}
}
