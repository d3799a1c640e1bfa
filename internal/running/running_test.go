package running

import "testing"

func TestMarkHoldsUntilTheFunctionEnds(t *testing.T) {
	store, other := new(int), new(int)
	a, b := Key{store, "s", "a"}, Key{store, "s", "b"}
	if Under(t.Context(), a) {
		t.Error("under a key without a function")
	}
	outer, outerFunction := Mark(t.Context(), a)
	inner, innerFunction := Mark(outer, b)
	if !Under(outer, a) || Under(outer, b) || !Under(inner, a) || !Under(inner, b) {
		t.Error("not under its own keys")
	}
	if Under(inner, Key{other, "s", "a"}) {
		t.Error("under the same key of another store")
	}
	if key, _ := Innermost(inner); key != b {
		t.Error("innermost is ", key)
	}
	innerFunction.End()
	if key, _ := Innermost(inner); key != a || Under(inner, b) {
		t.Error("after the inner one has ended, innermost is ", key)
	}
	outerFunction.End()
	if _, found := Innermost(inner); found || Under(inner, a) {
		t.Error("marked after the functions have ended")
	}
}
