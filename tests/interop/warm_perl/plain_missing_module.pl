#!/usr/bin/perl
# plain: does not compile
use Not::There::At::All;
print "x\n";
