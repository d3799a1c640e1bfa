package idemhttp

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"

	"github.com/pgidem/idempotency/internal/transport"
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

type octets = transport.Octets

func toOctets(h http.Header) map[string][]octets { return transport.ToOctets(h) }

func toHeader(stored map[string][]octets) http.Header { return transport.FromOctets(stored) }

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
	n := r.Body.Size() - len(`""`) // an empty one is left out
	for _, fields := range []map[string][]octets{r.Header, r.Added, r.Trailer} {
		for name, values := range fields {
			n += len(name)
			for _, value := range values {
				n += value.Size()
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
