// Package payconnect is the service of this module's tests for package connect.
package payconnect
