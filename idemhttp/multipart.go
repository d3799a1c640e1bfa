package idemhttp

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"slices"
	"strings"
)

var errNotMultipart = errors.New("idemhttp: not a multipart body")

// canonicalMultipart is what a multipart body (RFC 2046, section 5.1) says
// without its boundary, which clients make anew for each attempt: for each part
// the number of its header lines, those lines in the order of their names, and
// its bytes. What is around the parts is nobody's (section 5.1.1).
func canonicalMultipart(contentType string, body []byte) ([][]byte, error) {
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.HasPrefix(mediaType, "multipart/") || params["boundary"] == "" {
		return nil, errNotMultipart
	}
	var parts [][]byte
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := reader.NextRawPart()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(part)
		if err != nil {
			return nil, err
		}
		var lines [][]byte
		for _, name := range slices.Sorted(maps.Keys(part.Header)) {
			for _, value := range part.Header[name] {
				lines = append(lines, []byte(name+": "+value))
			}
		}
		parts = append(parts, []byte{byte(len(lines) >> 8), byte(len(lines))})
		parts = append(append(parts, lines...), data)
	}
}
