package idemhttp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// A Policy is what clients have to know about the idempotency keys of a
// Middleware: the specification that the draft asks a server to publish
// (section 2.5.2). It can be changed before it is published, for example to say
// in Scope what an account is.
type Policy struct {
	Specification string   `json:"specification"`
	Documentation string   `json:"documentation,omitempty"`
	Header        string   `json:"header,omitempty"`
	Required      bool     `json:"required"`
	Methods       []string `json:"methods"`
	KeyFormat     string   `json:"key_format"`
	MaxKeyLength  int      `json:"max_key_length"`
	Scope         string   `json:"scope"`
	SameRequest   string   `json:"same_request"`

	RetentionSeconds int64 `json:"retention_seconds"`

	// NotRecorded are the statuses, or ranges of them, after which a retry is
	// executed. All others are recorded and replayed.
	NotRecorded []string `json:"not_recorded_statuses"`

	// NotReplayed are the header fields that a replay leaves out. A star stands for
	// any beginning or ending; what follows a "!" is replayed all the same.
	NotReplayed []string `json:"not_replayed_headers"`

	MaxRequestBody int64     `json:"max_request_body"`
	Problems       []Problem `json:"problems"`
}

// Policy returns what the Middleware does, for publication: as JSON, or mounted
// as a handler.
//
//	mux.Handle("GET /.well-known/idempotency-policy", idem.Policy())
func (m *Middleware) Policy() Policy {
	sameRequest := "method, path, query and body (JSON and multipart by what they say), and the header fields given"
	for i, name := range m.cfg.FingerprintHeaders {
		sameRequest += []string{": ", ", "}[min(i, 1)] + http.CanonicalHeaderKey(name)
	}
	if m.cfg.Fingerprint != nil {
		sameRequest = "as this server compares them"
	}
	header, keyFormat := m.cfg.Header, `a String of RFC 9651 ("..."), or the same without quotes; printable ASCII; new for each operation, and hard to guess, such as a UUID`
	if m.cfg.Key != nil {
		header, keyFormat = "", "as this server finds it in the request"
	}
	return Policy{
		Specification:    "draft-ietf-httpapi-idempotency-key-header-07 (expired)",
		Documentation:    m.cfg.Documentation,
		Header:           header,
		Required:         !m.cfg.Optional,
		Methods:          slices.Clone(m.cfg.Methods),
		KeyFormat:        keyFormat,
		MaxKeyLength:     m.cfg.MaxKeyLength,
		Scope:            "the keys of each client are its own",
		SameRequest:      sameRequest,
		RetentionSeconds: int64(m.store.Config().Retention / time.Second),
		NotRecorded:      notRecorded(m.cfg.Record),
		NotReplayed:      m.notReplayed(),
		MaxRequestBody:   m.cfg.MaxRequestBody,
		Problems:         slices.Clone(allProblems),
	}
}

// notRecorded asks for every status, with an empty header, and joins
// neighbours: "401", "500-599".
func notRecorded(record func(int, http.Header, http.Header) bool) []string {
	var ranges []string
	for status := 200; status < 600; status++ {
		first := status
		for status < 600 && !record(status, http.Header{}, http.Header{}) {
			status++
		}
		switch status - first {
		case 0:
		case 1:
			ranges = append(ranges, fmt.Sprint(first))
		default:
			ranges = append(ranges, fmt.Sprintf("%d-%d", first, status-1))
		}
	}
	return ranges
}

// ServeHTTP answers GET and HEAD with the policy as JSON.
func (p Policy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	body, _ := json.MarshalIndent(p, "", "  ") // of texts and numbers
	_, _ = w.Write(append(body, '\n'))
}
