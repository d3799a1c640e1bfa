package idemconnect

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/pgidem/idempotency"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// This file is the same in the packages idemgrpc and idemconnect; a test compares them.

// fingerprintOf is the default of Config.Fingerprint.
//
// A deterministic encoding has the entries of a map in order. But which order the fields
// have is nobody's promise, and the fields that a program does not know come last: during
// a deployment that adds a field, a retry would be another request in the programs of
// before. So the fields are put in the order of their numbers.
func fingerprintOf(method string, request proto.Message) (idempotency.Fingerprint, error) {
	wire, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(request)
	if err != nil {
		return idempotency.Fingerprint{}, err
	}
	sortFields(wire, request.ProtoReflect().Descriptor(), maxSortedDepth)
	return idempotency.FingerprintOf([]byte(method), wire), nil
}

// These bound what a hostile request costs: each level that is out of order is copied
// once, and its fields are listed. Messages inside of more others, and those of more
// fields, stay as they are encoded.
const (
	maxSortedDepth  = 32
	maxSortedFields = 10_000
)

// sortFields sorts the fields of an encoded message by their numbers, in place, and so in
// the messages inside that d knows. It does not change the order of equal numbers, which
// has a meaning.
func sortFields(wire []byte, d protoreflect.MessageDescriptor, depth int) {
	if depth == 0 {
		return
	}
	count, sorted := 0, true
	for last, rest := protowire.Number(0), wire; len(rest) > 0; count++ {
		f, value := nextField(rest)
		if f.wire == nil {
			return // not an encoded message, which a deterministic encoding never is
		}
		if known := d.Fields().ByNumber(f.number); value != nil && known != nil && known.Message() != nil {
			sortFields(value, known.Message(), depth-1)
		}
		sorted = sorted && last <= f.number
		last, rest = f.number, rest[len(f.wire):]
	}
	if sorted || count > maxSortedFields {
		return
	}
	fields := make([]field, 0, count)
	for rest := bytes.Clone(wire); len(rest) > 0; {
		f, _ := nextField(rest)
		fields = append(fields, f)
		rest = rest[len(f.wire):]
	}
	slices.SortStableFunc(fields, func(a, b field) int { return cmp.Compare(a.number, b.number) })
	for _, f := range fields {
		wire = wire[copy(wire, f.wire):]
	}
}

// A field is one of an encoded message, with its tag.
type field struct {
	number protowire.Number
	wire   []byte
}

// nextField returns the first field of an encoded message, and its value if that has a
// length in front.
func nextField(wire []byte) (f field, value []byte) {
	number, kind, tag := protowire.ConsumeTag(wire)
	if tag < 0 {
		return field{}, nil
	}
	length := protowire.ConsumeFieldValue(number, kind, wire[tag:])
	if length < 0 {
		return field{}, nil
	}
	if kind == protowire.BytesType {
		value, _ = protowire.ConsumeBytes(wire[tag:])
	}
	return field{number, wire[:tag+length]}, value
}
