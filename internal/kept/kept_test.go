package kept

import (
	"encoding/json"
	"math/big"
	"testing"
	"time"
)

// What is lost, and what is not, is tested by calls: in the root package.

func TestNumbersThatAFloatKeepsAndThoseThatItDoesNot(t *testing.T) {
	t.Parallel()
	for number, fits := range map[string]bool{
		"0": true, "-0": true, "0.0": true, "0e5": true, "7": true, "-12": true, "100": true, "1e2": true, "1E+2": true,
		"1.00": true, "0.1": true, "0.001": true, "10.5": true, "1e-3": true, "123456789012345": true, "9007199254740992": true,
		"1e21": true, "1152921504606846976": true, "1152921504606847000": true, "1000000000000000000000": true, "5e-324": true, "1.7976931348623157e308": true,
		"9007199254740993": false, "1152921504606846977": false, "-9007199254740993": false, "18446744073709551615": false, "9007199254740992.5": false,
		"0.1000000000000000000001": false, "0.12345678901234567890": false, "1e-400": false, "4.9e-324": false,
		"1e999": true, // reading it fails
	} {
		if got := fitsFloat([]byte(number)); got != fits {
			t.Errorf("%s: %v", number, got)
		}
	}
}

func TestValueOfATypeThatWasClearedIsCheckedWithoutAnAllocation(t *testing.T) {
	type item struct {
		Name  string
		Price *big.Int
		Tags  map[string][]time.Time
		Next  *item
		Empty struct{}
	}
	value := item{Name: "a", Price: big.NewInt(7)}
	stored, err := json.Marshal(&value)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := Check(&value, &value, stored); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCheck(b *testing.B) {
	b.Run("cleared type", func(b *testing.B) { benchmark(b, tree2{"a", []string{"x"}, time.Now()}) })
	b.Run("interface", func(b *testing.B) {
		benchmark(b, map[string]any{"id": 12345, "status": "paid", "amount": 10.5, "meta": map[string]any{"a": "b"}})
	})
	b.Run("one-sided", func(b *testing.B) { benchmark(b, validated{200}) })
}

type tree2 struct {
	Name string
	Tags []string
	At   time.Time
}

func benchmark[T any](b *testing.B, value T) {
	stored, err := json.Marshal(&value)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(&value, &value, stored); err != nil {
			b.Fatal(err)
		}
	}
}

// validated reads what JSON writes without a method.
type validated struct{ Status int }

func (v *validated) UnmarshalJSON(doc []byte) error {
	type plain validated
	return json.Unmarshal(doc, (*plain)(v))
}
