// Package inspect asks a database what became of the keys in it, for those who look: the
// command and the operators' page. It changes nothing, and reads no table before it has
// looked at whom the table obeys.
package inspect
