package idempotency_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency"
)

func TestValuesReplayExactly(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type item struct {
		Name string
		Tags []string
		Next *item
	}
	replaysEqual(b, "nil pointer", (*item)(nil))
	replaysEqual(b, "nil any", any(nil))
	replaysEqual(b, "nil slice", []int(nil))
	replaysEqual(b, "empty slice", []int{})
	replaysEqual(b, "nil map", map[string]int(nil))
	replaysEqual(b, "empty map", map[string]int{})
	replaysEqual(b, "zero", 0)
	replaysEqual(b, "empty string", "")
	replaysEqual(b, "false", false)
	replaysEqual(b, "empty struct", struct{}{})
	replaysEqual(b, "largest", int64(math.MaxInt64))
	replaysEqual(b, "smallest", int64(math.MinInt64))
	replaysEqual(b, "float", math.SmallestNonzeroFloat64)
	replaysEqual(b, "bytes", []byte{0, 1, 255})
	replaysEqual(b, "unicode", "Zoë 🦆 \u0000 \u2028 <&> \\ \"")
	replaysEqual(b, "struct", item{Name: "a", Tags: []string{"x", ""}, Next: &item{Name: "b"}})
	replaysEqual(b, "a megabyte", strings.Repeat("x", 1<<20-2))
}

func replaysEqual[T any](b *bundle, name string, want T) {
	b.Helper()
	key := idempotency.Key{Scope: "values", ID: name}
	for i := range 2 {
		got, replayed, err := idempotency.Do(context.Background(), b.store, key, func(context.Context, pgx.Tx) (T, error) {
			return want, nil
		})
		if err != nil || replayed != (i == 1) || !reflect.DeepEqual(got, want) {
			b.Errorf("%s, call %d: %#v, replayed %v, %v; want %#v", name, i, got, replayed, err, want)
		}
	}
}

func TestCallersOfOneReplayDoNotShareMemory(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	one := func() []int {
		got, _, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) ([]int, error) {
			return []int{1}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	one()[0] = 2
	one()[0] = 2
	if got := one(); got[0] != 1 {
		t.Errorf("got %v", got)
	}
}

func TestResultOverTheLimitIsErrTooLargeAndRollsBack(t *testing.T) {
	t.Parallel()
	for limit, cfg := range map[int]idempotency.Config{
		1 << 20: {},
		10:      {MaxResult: 10},
	} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := setup(t, cfg)
			_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (string, error) {
				_, err := charge(b.key.ID, 1)(ctx, tx)
				return strings.Repeat("x", limit-1), err // and two quotes
			})
			b.wantErr(err, idempotency.ErrTooLarge)
			b.effects(0)
			b.executes(7)
			b.key.ID = "one that fits"
			_, _, err = idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (string, error) {
				return strings.Repeat("x", limit-2), nil
			})
			b.wantErr(err, nil)
		})
	}
}

// oneWay can be written as JSON and not read.
type oneWay struct{ N int }

func (oneWay) UnmarshalJSON([]byte) error { return fmt.Errorf("not readable") }

func TestResultThatCannotBeReadBackFailsTheFirstCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (*oneWay, error) {
		_, err := charge(b.key.ID, 1)(ctx, tx)
		return &oneWay{1}, err
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	b.effects(0)
}

func TestRecordOfAnotherTypeIsErrUndecodableAndNeverASecondExecution(t *testing.T) {
	t.Parallel()
	var event idempotency.Event
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	b.executes(1)
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) ([]string, error) {
		_, err := charge(b.key.ID, 1)(ctx, tx)
		return nil, err
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	b.wantErr(event.Err, idempotency.ErrUndecodable)
	b.replays(1)
	b.effects(1)
}

type (
	balance struct{ Wei big.Int }
	secret  struct{ n int }
	base    struct{ secret secret }

	// counted has its methods on the pointer, and reads back anything.
	counted struct{ n int }

	// writeOnly, readOnly and asText each lack a method.
	writeOnly struct{ N int }
	readOnly  struct{ N int }
	mixed     struct{ N int }

	// pointed writes and reads its field by another name, with methods on the pointer.
	pointed struct{ N int }

	// validated reads what JSON writes without a method.
	validated struct{ Status int }

	tree struct {
		Name string
		Kids []*tree
		Meta any
	}
	generic[T any] struct{ V T }
	dated          struct {
		time.Time
		Note string
	}
	datedOwn struct {
		time.Time
		Note string
	}
	money    struct{ big.Int }
	twoTimes struct {
		generic[time.Time]
		At time.Time `json:"at,omitzero"`
	}
	keyText struct{ a, b string }

	// bag keeps its numbers as they are written.
	bag map[string]any
)

func (c *counted) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]int{"n": c.n}) }

func (c *counted) UnmarshalJSON(doc []byte) error {
	m := map[string]int{}
	err := json.Unmarshal(doc, &m)
	c.n = m["n"]
	return err
}

func (w writeOnly) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `{"amount":%d}`, w.N), nil }

func (r *readOnly) UnmarshalJSON(doc []byte) error {
	var other struct{ Amount int }
	err := json.Unmarshal(doc, &other)
	r.N = other.Amount
	return err
}

func (m mixed) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `{"amount":%d}`, m.N), nil }

func (m *mixed) UnmarshalText(doc []byte) error { return errors.New("never called") }

func (p *pointed) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `{"amount":%d}`, p.N), nil }

func (p *pointed) UnmarshalJSON(doc []byte) error {
	var other struct{ Amount int }
	err := json.Unmarshal(doc, &other)
	p.N = other.Amount
	return err
}

func (v *validated) UnmarshalJSON(doc []byte) error {
	type plain validated
	return json.Unmarshal(doc, (*plain)(v))
}

func (b bag) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]any(b)) }

func (b *bag) UnmarshalJSON(doc []byte) error {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	return d.Decode((*map[string]any)(b))
}

func (d datedOwn) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"at": d.Time, "note": d.Note})
}

func (d *datedOwn) UnmarshalJSON(doc []byte) error {
	var in struct {
		At   time.Time
		Note string
	}
	err := json.Unmarshal(doc, &in)
	d.Time, d.Note = in.At, in.Note
	return err
}

func (k keyText) MarshalText() ([]byte, error) { return []byte(k.a + "/" + k.b), nil }

func (k *keyText) UnmarshalText(text []byte) error {
	k.a, k.b, _ = strings.Cut(string(text), "/")
	return nil
}

func TestValuesWithMethodsOfTheirOwnComeBack(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	at := time.Date(2026, 11, 27, 1, 2, 3, 4, time.UTC)
	huge, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	replaysEqual(b, "big.Int", *huge)
	replaysEqual(b, "pointer to big.Int", huge)
	replaysEqual(b, "big.Int in a struct", balance{*huge})
	replaysEqual(b, "big.Int in a pointer", &balance{*huge})
	replaysEqual(b, "big.Int in a slice", []balance{{*huge}})
	replaysEqual(b, "big.Int in an array", [1]big.Int{*huge})
	replaysEqual(b, "pointers to big.Int in a map", map[string]*big.Int{"a": huge})
	replaysEqual(b, "big.Rat", *big.NewRat(1, 3))
	replaysEqual(b, "embedded big.Int", money{*huge})
	replaysEqual(b, "lenient decoder", counted{7})
	replaysEqual(b, "lenient decoder in slices", [][]counted{{{7}}})
	replaysEqual(b, "lenient decoders in a map of slices", map[string][]counted{"a": {{7}}})
	replaysEqual(b, "generic", generic[generic[counted]]{generic[counted]{counted{7}}})
	replaysEqual(b, "time", at)
	replaysEqual(b, "duration", time.Hour)
	replaysEqual(b, "embedded time with methods of its own", datedOwn{at, "x"})
	replaysEqual(b, "embedded time and nothing beside it", dated{Time: at})
	replaysEqual(b, "time beside a generic", twoTimes{generic[time.Time]{at}, at})
	replaysEqual(b, "address", netip.MustParsePrefix("10.0.0.0/8"))
	replaysEqual(b, "URL", url.URL{Scheme: "https", Host: "example.com"})
	replaysEqual(b, "null string", sql.NullString{String: "x", Valid: true})
	replaysEqual(b, "null", sql.Null[int64]{V: 9007199254740993, Valid: true})
	replaysEqual(b, "numeric", pgtype.Numeric{Int: big.NewInt(12345), Exp: -2, Valid: true})
	replaysEqual(b, "timestamptz", pgtype.Timestamptz{Time: at, Valid: true})
	replaysEqual(b, "uuid", pgtype.UUID{Bytes: [16]byte{1}, Valid: true})
	replaysEqual(b, "keys with text methods", map[keyText]int{{"a", "b"}: 1, {"c", "d"}: 2})
	replaysEqual(b, "keys that are numbers", map[int64]uint64{-9007199254740993: 1<<64 - 1})
	replaysEqual(b, "decoder without encoder that reads what JSON writes", validated{200})
	replaysEqual(b, "pointers with methods in a map", map[string]*pointed{"a": {7}})
	replaysEqual(b, "number as text", json.Number("9007199254740993.000"))
	replaysEqual(b, "raw", json.RawMessage(`{"n":9007199254740993}`))
}

func TestWhatHasNothingToLoseStaysLegal(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	replaysEqual(b, "empty struct", struct{}{})
	replaysEqual(b, "fields without a size", struct {
		_ [0]func()
		s struct{}
	}{})
	replaysEqual(b, "set", map[string]struct{}{"a": {}})
	replaysEqual(b, "hidden fields that are zero", generic[secret]{})
	replaysEqual(b, "no hidden values", generic[[]secret]{[]secret{}})
	replaysEqual(b, "nil hidden pointer", (*secret)(nil))
	replaysEqual(b, "fields that are left out on purpose", struct {
		ID   int
		Kept secret `json:"-"`
	}{ID: 1})
	replaysEqual(b, "embedded pointer that is nil", struct {
		*base
		N int
	}{N: 1})
	replaysEqual(b, "channel that is left out", struct {
		C chan int `json:"-"`
		N int      `json:",string"`
	}{N: 1})
	replaysEqual(b, "error that is nil", struct{ Err error }{})
	replaysEqual(b, "recursive", tree{Name: "a", Kids: []*tree{{Name: "b", Meta: "x"}}})
	replaysEqual(b, "interface with text, flags and numbers", map[string]any{
		"text": "9007199254740993", "flag": true, "none": nil, "list": []any{1.0, -0.5, 1e300, 5e-324, 0.0, 9007199254740992.0},
		"nested": map[string]any{"n": 1e21},
	})
	replaysEqual(b, "replacement character", "\ufffd and \\ufffd")
	replaysEqual(b, "raw replacement character", json.RawMessage(`"\ufffd"`))
	keptAsIs(b, "locked", &struct {
		mu   sync.Mutex
		Name string
	}{Name: "a"})
	replaysEqual(b, "interface with a quote", []any{`"`, 1.5})
	replaysEqual(b, "interface with quotes", []any{`"`, `\`, `\"`, 1.5})
	replaysEqual(b, "decoder that keeps numbers by itself", struct {
		B bag
		A any
	}{bag{"id": json.Number("9007199254740993")}, "x"})
	keptAsIs(b, "hidden value that is left out on purpose", struct {
		Kept secret `json:"-"`
		A    any
	}{secret{7}, 1})
	keptAsIs(b, "only fields that are left out on purpose", struct {
		ID int `json:"-"`
		n  int
	}{1, 2})
	keptAsIs(b, "interface beside a type without a method", struct {
		V validated
		A []any
	}{validated{200}, []any{struct{ B, A int }{1, 2}, readOnly{7}}})
	keptAsIs(b, "interface with a value that is zero", any(struct{ S secret }{}))
	keptAsIs(b, "integers of an interface", map[string]any{"a": 1, "b": uint64(1 << 60), "c": float32(0.1), "d": json.Number("1.00")})
	keptAsIs(b, "interface with a type of the program", map[string]any{"a": balance{}, "b": &counted{7}, "c": writeOnly{7}, "d": readOnly{7}})
	keptAsIs(b, "times with a monotonic clock", []time.Time{time.Now()})
}

// keptAsIs is for values whose form changes, and not what they say.
func keptAsIs[T any](b *bundle, name string, value T) {
	b.Helper()
	_, _, err := idempotency.Do(context.Background(), b.store, idempotency.Key{Scope: "as is", ID: name}, func(context.Context, pgx.Tx) (T, error) {
		return value, nil
	})
	if err != nil {
		b.Errorf("%s: %v", name, err)
	}
}

func TestWhatJSONLosesWithoutAWordFailsTheFirstCallAndNamesTheField(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	withUser := url.URL{Host: "example.com", User: url.UserPassword("a", "b")}
	var atom struct{ N atomic.Int64 }
	atom.N.Store(7)
	loses(b, secret{7}, "idempotency_test.secret (type", "unexported")
	loses(b, &secret{7}, "idempotency_test.secret (type", "MarshalJSON")
	loses(b, generic[secret]{secret{7}}, ".V (type", "unexported")
	loses(b, struct{ In []map[string]*secret }{[]map[string]*secret{nil, {"k": {7}}}}, `.In[1]["k"] (type`)
	loses(b, [2]secret{{}, {7}}, "[1]")
	loses(b, map[int]secret{5: {7}}, "[5]")
	loses(b, struct{ base }{base{secret{7}}}, ".base")
	loses(b, struct {
		*base
		N int
	}{&base{secret{7}}, 1}, "base") // JSON itself cannot set it
	loses(b, struct{ generic[secret] }{generic[secret]{secret{7}}}, ".V (type")
	loses(b, &struct {
		N      int
		Hidden *secret `json:"h,omitempty"`
	}{1, &secret{7}}, ".Hidden")
	loses(b, tree{Kids: []*tree{{Meta: []any{secret{7}}}}}, ".Kids[0].Meta[0] (type")
	loses(b, any(secret{7}), "unexported")
	loses(b, any(&secret{7}), "unexported")
	loses(b, map[string]any{"err": errors.New("declined")}, `["err"] (type errors.errorString)`)
	loses(b, withUser, ".User (type url.Userinfo)")
	loses(b, &atom, ".N (type atomic.Int64)")

	loses(b, map[string]big.Int{"a": *big.NewInt(7)}, `["a"]`, "put a pointer there")
	loses(b, any(balance{*big.NewInt(7)}), "put a pointer there")
	loses(b, map[string]counted{"a": {7}}, `["a"]`, "put a pointer there")
	loses(b, map[string]pointed{"a": {7}}, `["a"]`, "put a pointer there")
	loses(b, generic[writeOnly]{writeOnly{7}}, ".V (type", "needs UnmarshalJSON")
	loses(b, []readOnly{{7}}, "[0] (type", "needs MarshalJSON")
	loses(b, generic[mixed]{mixed{7}}, ".V: ", "needs UnmarshalJSON")
	loses(b, dated{time.Now(), "note"}, ".Note is lost", "give the embedded field a name")
	loses(b, generic[any]{dated{time.Now(), "note"}}, ".V.Note is lost")

	loses(b, map[string]any{"id": int64(9007199254740993)}, `["id"] is 9007199254740993`, "9007199254740992", "float64")
	loses(b, any(uint64(1<<64-1)), "18446744073709551615", "concrete type")
	loses(b, generic[[]any]{[]any{1, json.Number("0.12345678901234567890")}}, ".V[1] is 0.12345678901234567890")
	loses(b, []any{json.Number("1e-400")}, "[0] is 1e-400")
	loses(b, map[string]any{"a": map[string]int64{"b": -9007199254740993}}, `["a"]["b"] is -9007199254740993`)
	loses(b, []any{json.RawMessage(`{"n":[9007199254740993]}`)}, `[0]["n"][0]`)
	loses(b, generic[any]{struct{ ID int64 }{9007199254740993}}, `.V["ID"]`)
	loses(b, []any{big.NewInt(9007199254740993)}, "[0] is 9007199254740993")

	loses(b, "a\xff", "not valid UTF-8")
	loses(b, generic[map[string][]string]{map[string][]string{"k": {"a", "\xff"}}}, `.V["k"][1] is not valid UTF-8`)
	loses(b, map[string]any{"\xff": 1}, `is not valid UTF-8`)
}

// loses expects the value to fail a call that then leaves nothing, with all the texts.
func loses[T any](b *bundle, value T, texts ...string) {
	b.Helper()
	_, _, err := idempotency.Do(context.Background(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (T, error) {
		_, err := charge(b.key.ID, 1)(ctx, tx)
		return value, err
	})
	if !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), "nothing of this call was kept") {
		b.Errorf("%T: got error %v", value, err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			b.Errorf("%T: the error does not say %q: %v", value, text, err)
		}
	}
	b.effects(0)
}

type method interface{ Pay() }

func (c counted) Pay() {}

func TestErrorOfAValueThatJSONRefusesNamesTheFieldAndWhatToDo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	loses(b, struct{ Paid []generic[chan int] }{[]generic[chan int]{{}, {make(chan int)}}}, ".Paid[0].V", "unsupported type")
	loses(b, map[string]any{"f": func() {}}, `["f"]`, "unsupported type")
	loses(b, generic[float64]{nan()}, ".V", "NaN")
	loses(b, generic[method]{counted{7}}, ".V", "use a concrete type")
	loses(b, generic[error]{errors.New("no")}, ".V", "use a concrete type", "interface error")
	loses(b, generic[[]oneWay]{[]oneWay{{1}}}, ".V[0]", "not readable")
	loses(b, []any{json.Number("1e999")}, "1e999")
}

func nan() float64 { f, _ := strconv.ParseFloat("NaN", 64); return f }

func TestErrUndecodableSaysWhetherTheOperationTookEffect(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	type account struct{ Owner method }
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (account, error) {
		return account{}, nil
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	if text := err.Error(); !strings.Contains(text, "took effect earlier") || !strings.Contains(text, "account") || strings.Contains(text, "nothing of this call was kept") {
		t.Error(err)
	}
	b.key.ID = "an interface"
	b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
		values ($1, $2, now() + '1 day', '{"Owner": {"n": 1}}', now(), now() + '1 day')`, b.key.ID, b.key.Scope)
	_, _, err = idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (account, error) {
		return account{}, nil
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	for _, text := range []string{"took effect earlier", "Owner", "use a concrete type"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not say %q: %v", text, err)
		}
	}
}

func TestRecordsOfAnotherReleaseAreReadAsThePageSays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type former struct {
		ID     int    `json:"id"`
		Amount string `json:"amount"`
	}
	if _, _, err := release(b, former{7, "10 EUR"}); err != nil {
		t.Fatal(err)
	}
	type added struct {
		former
		Currency string `json:"currency"`
	}
	if got, replayed, err := release(b, added{}); got != (added{former: former{7, "10 EUR"}}) || !replayed || err != nil {
		t.Errorf("added: %+v, %v, %v", got, replayed, err)
	}
	type removed struct {
		ID int `json:"id"`
	}
	if got, replayed, err := release(b, removed{}); got.ID != 7 || !replayed || err != nil {
		t.Errorf("removed: %+v, %v, %v", got, replayed, err)
	}
	type renamed struct {
		ID    int    `json:"id"`
		Price string `json:"price"`
	}
	if got, replayed, err := release(b, renamed{}); got != (renamed{ID: 7}) || !replayed || err != nil {
		t.Errorf("renamed: %+v, %v, %v", got, replayed, err)
	}
	type changed struct {
		Amount int `json:"amount"`
	}
	_, replayed, err := release(b, changed{})
	b.wantErr(err, idempotency.ErrUndecodable)
	if replayed || !strings.Contains(err.Error(), "changed.amount") {
		t.Errorf("replayed %v, %v", replayed, err)
	}
}

// release calls Do as one release of a program, whose result is of type T.
func release[T any](b *bundle, value T) (T, bool, error) {
	return idempotency.Do(context.Background(), b.store, b.key, func(context.Context, pgx.Tx) (T, error) { return value, nil })
}

func TestFormerFingerprintIsReplayedWhenItIsAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	none, one, other := idempotency.Fingerprint{}, idempotency.FingerprintOf([]byte("a")), idempotency.FingerprintOf([]byte("a"), nil)
	for i, change := range [][2]idempotency.Fingerprint{{none, one}, {one, none}, {one, other}} {
		b.key.ID = fmt.Sprint("key-", i)
		b.key.Fingerprint = change[0]
		b.executes(7)
		b.key.Fingerprint = change[1]
		_, _, err := b.do(charge(b.key.ID, 8))
		b.wantErr(err, idempotency.ErrKeyReused)
		b.key.Fingerprint = change[0]
		b.replays(7)
		b.effects(1)
	}
}

func TestRawJSONAndCharactersOfHTMLComeBackAsThePageSays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type answer struct {
		Raw  json.RawMessage
		Text string
	}
	given := answer{json.RawMessage("{ \"a\" : \"<&>\u2028\" }"), "<&>\u2028"}
	for i := range 2 {
		got, replayed, err := release(b, given)
		if string(got.Raw) != `{"a":"\u003c\u0026\u003e\u2028"}` || got.Text != given.Text || replayed != (i == 1) || err != nil {
			t.Errorf("call %d: %s, %q, replayed %v, %v", i, got.Raw, got.Text, replayed, err)
		}
	}
}

func TestValueOfAnEarlierRunDoesNotShowThrough(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec(`create function once() returns trigger language plpgsql as $$ begin if new.amount = 1 then raise 'again' using errcode = '40001'; end if; return null; end $$`)
	b.exec(`create constraint trigger once after insert on charges deferrable initially deferred for each row execute function once()`)
	runs := 0
	got, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (map[string]int, error) {
		runs++
		_, err := charge(b.key.ID, runs)(ctx, tx)
		return map[string]int{fmt.Sprint("run ", runs): runs}, err
	})
	if runs != 2 || len(got) != 1 || got["run 2"] != 2 || err != nil {
		t.Errorf("%d runs, %v, %v", runs, got, err)
	}
}

func TestDoTxHasTheSameRuleOfValues(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		got, _, err := idempotency.DoTx(t.Context(), b.store, tx, idempotency.Key{Scope: "s", ID: "kept"}, func(context.Context, pgx.Tx) (counted, error) {
			return counted{7}, nil
		})
		if err != nil || got.n != 7 {
			t.Errorf("got %v, %v", got, err)
		}
		_, _, err = idempotency.DoTx(t.Context(), b.store, tx, b.key, func(ctx context.Context, tx pgx.Tx) (secret, error) {
			_, err := charge(b.key.ID, 1)(ctx, tx)
			return secret{7}, err
		})
		b.wantErr(err, idempotency.ErrUndecodable)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	b.effects(0)
}
