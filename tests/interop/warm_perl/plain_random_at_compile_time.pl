#!/usr/bin/perl
# plain: draws random numbers
BEGIN { srand 7; }
print rand, "\n";
