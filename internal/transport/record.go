package transport

import (
	"encoding/json"
	"errors"
)

// A Record is the answer to a call of gRPC or Connect as it is stored: the value of
// [idempotency.Do]. The packages idemgrpc and idemconnect read each other's, so that a
// service can be served by both.
type Record struct {
	// Code is the name of a google.rpc.Code, and Message that of the status: for people,
	// who read it with the command "idempotency get".
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`

	Response []byte `json:"response,omitempty"` // the message in protobuf's encoding
	Status   []byte `json:"status,omitempty"`   // a google.rpc.Status in the same, of a final error

	// What the handler has set, of which names are in lower case. Values under a name that
	// ends in "-bin" are bytes.
	Header  map[string][]Octets `json:"header,omitempty"`
	Trailer map[string][]Octets `json:"trailer,omitempty"`

	// The names of what interceptors in front had set, and the handler has replaced or
	// deleted. With Connect it can; with gRPC a handler can only add.
	ReplacedHeader  []string `json:"replaced_header,omitempty"`
	ReplacedTrailer []string `json:"replaced_trailer,omitempty"`
}

// errNotRecord says nothing of what is stored, as errors of encoding/json do: it
// is reported, and the result can be a secret.
var errNotRecord = errors.New("idempotency: not the recorded answer to a call")

// UnmarshalJSON refuses what is no answer to a call, such as the result of a Do under
// the same key.
func (r *Record) UnmarshalJSON(doc []byte) error {
	type plain Record
	if json.Unmarshal(doc, (*plain)(r)) != nil || r.Code == "" {
		return errNotRecord
	}
	return nil
}
