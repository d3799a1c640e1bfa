package idemhttp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

// A requestBody is read once, whole, by whoever needs it first.
type requestBody struct {
	read    bool
	bytes   []byte
	problem *Problem

	formFromOutside bool // a multipart form was parsed before the Middleware
}

// readBody reads the body. What the client did not send as it should is the
// client's problem; what somebody here has taken away is the server's.
func (x *exchange) readBody() *Problem {
	b := &x.body
	if b.read {
		return b.problem
	}
	b.read, b.formFromOutside = true, x.r.MultipartForm != nil
	var err error
	if x.r.Body != nil {
		b.bytes, err = io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, x.m.cfg.MaxRequestBody))
	}
	tooLarge, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case isTooLarge: // the limit can be one of outer middleware
		b.problem = bodyTooLarge.because("It can have %d bytes. Nothing was executed.", tooLarge.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.problem = &bodyTimeout
	case errors.Is(err, http.ErrBodyReadAfterClose):
		b.problem = failed.causedBy(fmt.Errorf("idemhttp: the body was closed before the Middleware: %w", err))
	case err != nil:
		b.problem = &bodyUnreadable
	case x.bodyIsIncomplete():
		b.problem = failed.causedBy(fmt.Errorf("idemhttp: %d bytes of the body are left: somebody has read it before the Middleware, so that requests that differ would look the same. "+
			"Read it inside, in Config.Scope or Config.Key, or put it back into Request.Body", len(b.bytes)))
	}
	return b.problem
}

// bodyIsIncomplete finds out whether outer middleware has read the body, or some
// of it. One that was put back has its length; one that was decompressed can be
// shorter than what the client has sent, but is not empty.
func (x *exchange) bodyIsIncomplete() bool {
	left := int64(len(x.body.bytes))
	if left > 0 {
		return left < x.r.ContentLength && x.r.Header.Get("Content-Encoding") == ""
	}
	switch mediaType := mediaTypeOf(x.r.Header); {
	case x.r.ContentLength > 0, len(x.r.PostForm) > 0:
		return true
	case x.r.ContentLength == 0:
		return false
	default: // of unknown length: an empty text is none of these
		return isJSONType(mediaType) || strings.HasPrefix(mediaType, "multipart/")
	}
}

// A bodyOnDemand is the body for Config.Scope, which seldom wants it: then a
// request of nobody is refused before its body has arrived.
type bodyOnDemand struct {
	x      *exchange
	reader *bytes.Reader
}

func (b *bodyOnDemand) Read(p []byte) (int, error) {
	if b.reader == nil {
		if problem := b.x.readBody(); problem != nil {
			return 0, fmt.Errorf("idemhttp: reading the request body: %s", problem.Title)
		}
		b.reader = bytes.NewReader(b.x.body.bytes)
	}
	return b.reader.Read(p)
}

func (b *bodyOnDemand) Close() error { return nil }
