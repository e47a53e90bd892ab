#!/usr/bin/perl
# plain: reads /dev/urandom
BEGIN { open R, '<', '/dev/urandom'; read R, $x, 4 }
print length $x, "\n";
