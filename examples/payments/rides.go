package main

import (
	"errors"
	"net/http"
)

// readRide makes the input of the procedure. It runs before the key is claimed, and for
// each retry: what it refuses is not recorded.
func readRide(w http.ResponseWriter, r *http.Request) (RideOrder, bool) {
	var body struct {
		Amount Money  `json:"amount"`
		Card   string `json:"card"`
	}
	err := readJSON(r, &body, `{"amount": 2000, "card": "visa"}`)
	order := RideOrder{Account: account(r.Context()), Amount: body.Amount, Card: body.Card}
	if err == nil {
		err = order.validate()
	}
	if err != nil {
		refuse(w, invalid, err.Error())
		return RideOrder{}, false
	}
	return order, true
}

func (o RideOrder) validate() error {
	switch {
	case o.Amount <= 0:
		return errors.New("amount has to be 1 or more, in cents")
	case o.Card == "":
		return errors.New("card has to be the card provider's name for a card")
	}
	return nil
}

// answerRide makes the response of the recorded result, the first time and for each retry.
func answerRide(w http.ResponseWriter, _ *http.Request, ride Ride) {
	if ride.State == "declined" {
		refuse(w, declined, "the card was declined")
		return
	}
	respond(w, http.StatusCreated, ride)
}
