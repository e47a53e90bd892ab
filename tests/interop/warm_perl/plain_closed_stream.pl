#!/usr/bin/perl
# plain: closes a standard stream
BEGIN { close STDIN }
print defined fileno STDIN ? "open\n" : "closed\n";
