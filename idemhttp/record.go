package idemhttp

import (
	"encoding/json"
	"errors"
	"fmt"
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

// UnmarshalJSON refuses what is no response, such as the result of a call of
// Do under the same key.
func (r *record) UnmarshalJSON(doc []byte) error {
	type plain record
	if err := json.Unmarshal(doc, (*plain)(r)); err != nil {
		return err
	}
	if r.Status < 200 || r.Status > 999 {
		return fmt.Errorf("idemhttp: not a recorded response: its status is %d", r.Status)
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
	n := len(r.Body)
	for _, fields := range []map[string][]octets{r.Header, r.Added, r.Trailer} {
		for name, values := range fields {
			n += len(name)
			for _, value := range values {
				n += len(value)
			}
		}
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
