package idemhttp

import (
	"cmp"
	"mime"
	"net/http"
	"strings"

	"github.com/pgidem/idempotency"
)

// formerFingerprint is the fingerprint by the rules before the first release:
// with the charset of JSON and the boundary of multipart bodies, whose bytes
// counted; without the Host, and without the path as it arrived. Records made by
// them are replayed for as long as there are any.
//
// To remove, with the call in isFormer and its test, in the second release: one
// that runs for a retention of its Stores (24 hours by default) has outlived all
// such records.
func formerFingerprint(r *http.Request, body []byte, fields []string) idempotency.Fingerprint {
	parts := [][]byte{[]byte("idemhttp/1"), []byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery)}
	for _, name := range fields {
		parts = append(parts, []byte(strings.ToLower(name)), []byte(formerField(name, r.Header.Values(name))))
	}
	kind, content := "bytes", body
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && isJSONType(mediaType) && r.Header.Get("Content-Encoding") == "" {
		if canonical, err := canonicalJSON(body); err == nil {
			kind, content = "json", canonical
		}
	}
	return idempotency.FingerprintOf(append(parts, []byte(kind), content)...)
}

func formerField(name string, values []string) string {
	text := strings.Join(values, ", ")
	if strings.EqualFold(name, "Content-Type") {
		if mediaType, params, err := mime.ParseMediaType(text); err == nil {
			if charset, ok := params["charset"]; ok {
				params["charset"] = strings.ToLower(charset)
			}
			return cmp.Or(mime.FormatMediaType(mediaType, params), text)
		}
	}
	return text
}
