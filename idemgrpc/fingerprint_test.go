package idemgrpc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func fingerprintOrFail(t *testing.T, m proto.Message) idempotency.Fingerprint {
	t.Helper()
	f, err := fingerprintOf("/pay.v1.Payments/Charge", m)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func nested() *pay.LaterChargeRequest {
	return &pay.LaterChargeRequest{
		Account: "a", Amount: 10, Labels: map[string]string{"a": "1", "b": "2", "c": "3"}, Note: "for you", RequestId: "r",
		Item: &pay.LaterItem{Name: "box", Count: 2, Parts: map[string]*pay.LaterItem{
			"lid": {Name: "lid", Count: 1, Parts: map[string]*pay.LaterItem{"knob": {Name: "knob", Count: 3}}}, "base": {Name: "base", Count: 4}}},
	}
}

func TestFieldThatAReleaseDoesNotKnowDoesNotMakeAnotherRequest(t *testing.T) {
	t.Parallel()
	later := nested()
	want := fingerprintOrFail(t, later)
	for range 100 {
		wire, err := proto.Marshal(later) // map entries in any order
		if err != nil {
			t.Fatal(err)
		}
		before := &pay.ChargeRequest{}
		if err := proto.Unmarshal(wire, before); err != nil {
			t.Fatal(err)
		}
		if fingerprintOrFail(t, before) != want {
			t.Fatal("the release that does not know the fields makes another fingerprint")
		}
		if again := fingerprintOrFail(t, proto.Clone(later)); again != want {
			t.Fatal("the fingerprint depends on the order of the map")
		}
	}
}

func TestEveryFieldMakesAnotherRequest(t *testing.T) {
	t.Parallel()
	seen := map[idempotency.Fingerprint]string{}
	check := func(name string, m proto.Message) {
		f := fingerprintOrFail(t, m)
		if other, is := seen[f]; is {
			t.Errorf("%s has the fingerprint of %s", name, other)
		}
		seen[f] = name
	}
	change := map[string]func(*pay.LaterChargeRequest){
		"nothing":                 func(*pay.LaterChargeRequest) {},
		"a field":                 func(r *pay.LaterChargeRequest) { r.Amount = 11 },
		"a map":                   func(r *pay.LaterChargeRequest) { r.Labels["a"] = "2" },
		"a field less":            func(r *pay.LaterChargeRequest) { r.Note = "" },
		"a message inside":        func(r *pay.LaterChargeRequest) { r.Item.Count = 3 },
		"a message in a map":      func(r *pay.LaterChargeRequest) { r.Item.Parts["base"].Count = 3 },
		"values that are swapped": func(r *pay.LaterChargeRequest) { r.Labels["a"], r.Labels["b"] = "2", "1" },
		"an unknown field": func(r *pay.LaterChargeRequest) {
			r.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
		},
		"another unknown field": func(r *pay.LaterChargeRequest) {
			r.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 2))
		},
	}
	for name, change := range change {
		m := nested()
		change(m)
		check(name, m)
		before := &pay.ChargeRequest{}
		wire, err := proto.Marshal(m)
		if err != nil || proto.Unmarshal(wire, before) != nil {
			t.Fatal(err)
		}
		if fingerprintOrFail(t, before) != fingerprintOrFail(t, m) {
			t.Errorf("%s: the release before makes another fingerprint", name)
		}
	}
	f, _ := fingerprintOf("/pay.v1.Payments/Refund", nested())
	if name, is := seen[f]; is {
		t.Errorf("another method has the fingerprint of %s", name)
	}
}

// Fields of one number mean something by their order, as the elements of a list do.
func TestFieldsOfOneNumberKeepTheirOrder(t *testing.T) {
	t.Parallel()
	field := func(number protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	of := func(fields ...[]byte) idempotency.Fingerprint {
		m := &pay.Item{Name: "box"}
		m.ProtoReflect().SetUnknown(bytes.Join(fields, nil))
		return fingerprintOrFail(t, m)
	}
	var up, down, mixed [][]byte
	for i := range 50 { // so many that a sort which is not stable shows it
		up, down = append(up, field(2, fmt.Sprint(i))), append(down, field(2, fmt.Sprint(49-i)))
		mixed = append(mixed, field(90, fmt.Sprint(i)), field(2, fmt.Sprint(i)))
	}
	var apart [][]byte
	for i := range 50 {
		apart = append(apart, field(90, fmt.Sprint(i)))
	}
	if of(mixed...) != of(append(slices.Clone(up), apart...)...) {
		t.Error("the order of two numbers counts")
	}
	if of(up...) == of(down...) {
		t.Error("the order of one number does not count")
	}
}

func TestSortingIsBounded(t *testing.T) {
	t.Parallel()
	// Each level has a field out of order, which the next release knows.
	deep := func(levels int) *pay.LaterItem {
		m := &pay.LaterItem{Name: "bottom", Count: 1}
		for range levels {
			m = &pay.LaterItem{Name: "box", Count: 1, Parts: map[string]*pay.LaterItem{"": m}}
		}
		return m
	}
	for _, test := range []struct {
		name  string
		later proto.Message
		same  bool
	}{
		{"as deep as is looked", deep(maxSortedDepth / 2), true},
		{"one deeper", deep(maxSortedDepth/2 + 1), false},
	} {
		wire, err := proto.Marshal(test.later)
		if err != nil {
			t.Fatal(err)
		}
		before := &pay.Item{}
		if err := proto.Unmarshal(wire, before); err != nil {
			t.Fatal(err)
		}
		if same := fingerprintOrFail(t, before) == fingerprintOrFail(t, test.later); same != test.same {
			t.Errorf("%s: the same fingerprint is %v, want %v", test.name, same, test.same)
		}
	}
	many := func(n int) []byte {
		var wire []byte
		for i := range n {
			wire = protowire.AppendVarint(protowire.AppendTag(wire, protowire.Number(n-i), protowire.VarintType), 1)
		}
		return wire
	}
	for n, sorts := range map[int]bool{maxSortedFields: true, maxSortedFields + 1: false} {
		wire := many(n)
		before := bytes.Clone(wire)
		sortFields(wire, (&pay.Item{}).ProtoReflect().Descriptor(), maxSortedDepth)
		if sorted := !bytes.Equal(wire, before); sorted != sorts {
			t.Errorf("of %d fields, sorted is %v", n, sorted)
		}
	}
}

// What is not an encoded message stays as it is, and nothing panics.
func TestSortingLeavesGarbageAlone(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	d := (&pay.ChargeRequest{}).ProtoReflect().Descriptor()
	for range 10_000 {
		wire := make([]byte, random.IntN(40))
		for i := range wire {
			wire[i] = byte(random.IntN(60))
		}
		before := bytes.Clone(wire)
		sortFields(wire, d, maxSortedDepth)
		count := func(b []byte) (n [256]int) {
			for _, c := range b {
				n[c]++
			}
			return n
		}
		if count(wire) != count(before) {
			t.Fatalf("%x has become %x", before, wire)
		}
	}
}

func TestRequestThatCannotBeEncodedHasNoFingerprint(t *testing.T) {
	t.Parallel()
	if _, err := fingerprintOf("/m", &pay.ChargeRequest{Account: "\xff"}); err == nil {
		t.Error("it has one")
	}
}

func BenchmarkFingerprint(b *testing.B) {
	m := nested()
	for i := range 100 {
		m.Labels[fmt.Sprint(i)] = "value"
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fingerprintOf("/m", m); err != nil {
			b.Fatal(err)
		}
	}
}
