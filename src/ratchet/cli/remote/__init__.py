"""Carries out on a server what is carried out here: a module for each room of commands that a server has."""
